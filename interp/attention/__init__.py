"""Compute attention in place of a model, with the statistics of every head. No other package touches a model's attention."""
