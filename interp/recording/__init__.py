"""TODO_DOC interp/recording."""
