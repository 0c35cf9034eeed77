"""Task scorers: a response and its target → a score with its parts. Pure functions, no I/O."""
