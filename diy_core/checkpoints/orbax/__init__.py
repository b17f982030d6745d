"""Orbax's directories, as far as names and sizes tell: what reads arrays is in the JAX twin."""
