"""Hypotheses about attention: masks, rotary embedding, the cache."""
