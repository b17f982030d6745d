"""What touches the machine: files that others may change, directories, mounts, permissions."""
