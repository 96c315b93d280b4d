"""The commands of `hebm-train` that train."""
