"""Convolutions of training on CPUs: fewer multiplications, and no gradient that nobody needs."""
