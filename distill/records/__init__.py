"""Answers and signals of teachers, on disk and in memory."""
