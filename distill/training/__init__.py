"""How a student is trained, and how its heads are recorded during training."""
