"""Files of other projects, read without running anything in them, as models of ours."""
