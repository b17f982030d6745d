"""`parity check`: what is compared, how exactly, and the verdict."""
