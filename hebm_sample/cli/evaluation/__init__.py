"""The commands that measure: `hebm-eval`, and those of `hebm-train` that go with it."""
