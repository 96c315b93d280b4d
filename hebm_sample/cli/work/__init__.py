"""What the commands do once their options are read: load, sample, edit, save, tell."""
