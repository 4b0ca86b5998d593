"""A workspace that is carried into a box, and its work out of it, as data."""
