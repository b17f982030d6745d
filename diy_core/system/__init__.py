"""What touches the machine: files that come from outside."""
