"""The checkpoints of a run: written, kept, compared, and read again."""
