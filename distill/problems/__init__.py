"""Word problems: loading them, grading responses, and checking the calculations in responses."""
