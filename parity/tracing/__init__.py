"""Find the first place where a PyTorch model and a Flax model part: `parity.tracer` uses it."""
