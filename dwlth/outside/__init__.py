"""What others made: their checkpoints, from where they lie, and tickets of the paper's public code."""
