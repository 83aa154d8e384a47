"""What a student minimizes: the loss and its divergences, and the texts that each objective makes from a teacher's records."""
