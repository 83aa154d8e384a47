"""Commands that a researcher types."""
