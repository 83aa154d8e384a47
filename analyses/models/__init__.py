"""TODO_DOC analyses/models."""
