"""TODO_DOC distill/evaluation."""
