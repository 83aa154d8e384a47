"""What an argument of a comparison names: models, students and finished head runs, found and opened once."""
