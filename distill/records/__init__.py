"""TODO_DOC distill/records."""
