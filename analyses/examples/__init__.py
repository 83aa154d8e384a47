"""TODO_DOC analyses/examples."""
