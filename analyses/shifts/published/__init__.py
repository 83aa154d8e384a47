"""The published study's curves and ranking from stored attention maps."""
