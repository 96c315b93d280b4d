"""Bytes, images and seeds: what goes in and out, without a word of models."""
