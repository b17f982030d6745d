"""Hypotheses about what a layer, or the code around layers, computes."""
