"""TODO_DOC distill/objectives."""
