"""Which texts a student learns from."""
