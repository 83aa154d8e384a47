"""A path of version 0.1, kept to name the new one: importing it raises ImportError."""

from interp.tables.versions import moved_message

raise ImportError(moved_message("interp.table"), name="interp.table")
