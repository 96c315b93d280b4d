"""The multi-layer generator: networks, no sampling policy."""
