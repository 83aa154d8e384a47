"""TODO_DOC figures/drawing."""
