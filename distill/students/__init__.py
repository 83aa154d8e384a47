"""Students: how one is created, and its folder on disk."""
