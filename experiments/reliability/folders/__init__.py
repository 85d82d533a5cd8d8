"""Model folders for the trials beside: a sound one, and what may be wrong with each of its files."""
