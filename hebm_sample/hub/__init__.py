"""From a model's name to verified files: manifest, folders, Hub, and safetensors to modules."""
