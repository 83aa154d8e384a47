"""TODO_DOC figures/example."""
