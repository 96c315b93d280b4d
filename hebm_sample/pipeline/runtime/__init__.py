"""How chains use the machine: energies without ballast, threads, memory."""
