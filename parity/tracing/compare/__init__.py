"""How far the two sides are apart, array by array."""
