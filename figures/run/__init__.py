"""Figures and page of one head run."""
