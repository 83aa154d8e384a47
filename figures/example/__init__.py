"""Figures and page of one problem: what models read, where their heads look, what they expected at each number."""
