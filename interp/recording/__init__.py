"""Record a model's attention during a forward pass: statistics of every head, their totals, one text in detail, and map divergences."""
