"""What our models are trained with: architectures, objectives and run settings by name."""
