"""TODO_DOC distill/students."""
