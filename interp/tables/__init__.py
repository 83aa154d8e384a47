"""TODO_DOC interp/tables."""
