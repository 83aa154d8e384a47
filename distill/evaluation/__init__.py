"""Evaluation of students: graded answers, likelihoods of held-out answers, and statistics over students."""
