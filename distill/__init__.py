"""Produces students: problems, teachers' answers, training, grading."""
