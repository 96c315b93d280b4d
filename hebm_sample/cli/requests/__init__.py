"""What was typed: its grammar, and the options of each command checked against each other."""
