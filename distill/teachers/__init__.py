"""TODO_DOC distill/teachers."""
