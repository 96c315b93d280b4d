"""The commands: parse, call, save; no mathematics."""
