"""What checkpoints and training runs hold, and where two of them differ."""
