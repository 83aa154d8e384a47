"""TODO_DOC interp/attention."""
