"""TODO_DOC analyses/grades."""
