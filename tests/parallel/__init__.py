"""Training steps of an aligned model in several processes, and what a single one gives for the whole batch."""
