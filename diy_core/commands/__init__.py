"""How a program starts, its parser, and the commands that both twins have."""
