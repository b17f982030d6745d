"""Hypotheses about a value, whatever computed it."""
