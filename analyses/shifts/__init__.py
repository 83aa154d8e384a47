"""TODO_DOC analyses/shifts."""
