"""TODO_DOC distill/sources."""
