"""Data sets: one file each, and the writer that prepares them."""
