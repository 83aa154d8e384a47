"""TODO_DOC interp/measures."""
