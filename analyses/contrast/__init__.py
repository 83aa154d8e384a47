"""Compare heads on right and wrong answers: `python -m analyses.examples --contrast`, or `analyses.contrast.run.contrast_answers`."""
