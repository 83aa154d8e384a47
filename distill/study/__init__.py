"""TODO_DOC distill/study."""
