"""Every call of a model, as it happens, on either side."""
