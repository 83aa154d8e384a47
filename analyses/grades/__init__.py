"""Grade stored responses and compare models on the same problems: `python -m analyses.grades`, or `analyses.grades.run.grade_responses`."""
