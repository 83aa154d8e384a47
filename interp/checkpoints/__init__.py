"""TODO_DOC interp/checkpoints."""
