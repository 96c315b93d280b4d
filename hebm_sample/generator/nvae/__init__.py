"""NVAE as a second kind of generator, for networks that are imported and then frozen."""
