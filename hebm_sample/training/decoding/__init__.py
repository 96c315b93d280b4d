"""The sharp image decoder: its discriminator and losses, its objective, its training."""
