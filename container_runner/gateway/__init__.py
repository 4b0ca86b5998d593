"""The way out of a box without a network."""
