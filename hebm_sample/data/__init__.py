"""Training images: where they come from, and how they are drawn."""
