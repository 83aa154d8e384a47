"""Figures of heads on right and on wrong answers."""
