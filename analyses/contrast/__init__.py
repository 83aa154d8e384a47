"""TODO_DOC analyses/contrast."""
