"""Measure the attention heads of one checkpoint: `python -m analyses.heads`, or `analyses.heads.run.measure_heads`."""
