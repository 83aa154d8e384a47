"""TODO_DOC distill/training."""
