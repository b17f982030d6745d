"""Checkpoints, weights in memory and states of optimizers, between the formats and the twins."""
