"""Training, as far as it needs no framework: config, schedule, run directory and the loop."""
