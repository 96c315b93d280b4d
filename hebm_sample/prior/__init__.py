"""Densities of the energy-based prior: no loops, no randomness."""
