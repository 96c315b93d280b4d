"""Faces in photographs: found, turned and cut as a model's images are, and put back."""
