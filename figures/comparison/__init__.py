"""TODO_DOC figures/comparison."""
