"""TODO_DOC analyses/heads."""
