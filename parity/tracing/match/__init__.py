"""Which tensor and which call of one model is which of the other."""
