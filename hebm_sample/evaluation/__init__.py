"""How good is a model: the measurements that need one, and their reports."""
