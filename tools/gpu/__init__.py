"""What `tools/train_on_gpu.py` is made of."""
