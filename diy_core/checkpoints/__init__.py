"""Checkpoints on disk: one reader and one writer per format."""
