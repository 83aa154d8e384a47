"""TODO_DOC figures/run."""
