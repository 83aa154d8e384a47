"""Compare the attention heads of several models: `python -m analyses.shifts`, or `analyses.shifts.compare.compare_models`."""
