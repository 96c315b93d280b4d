"""Every figure of a model on one page."""
