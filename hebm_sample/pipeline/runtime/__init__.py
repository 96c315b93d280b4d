"""How chains use the machine: energies without ballast, and what commands may do to a process."""
