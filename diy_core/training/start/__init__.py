"""From a config and options to a run that begins, or continues."""
