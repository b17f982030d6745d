"""The commands of `parity`, a file for each group."""
