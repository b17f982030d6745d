"""Hypotheses about a parameter that differs."""
