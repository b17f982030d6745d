"""The directory of a run: who may write there, what was sealed into it, whether it may continue."""
