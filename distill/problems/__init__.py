"""TODO_DOC distill/problems."""
