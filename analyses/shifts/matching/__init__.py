"""Heads of models with different architectures, paired by what they do."""
