"""Data sets: builders, one file each, and the writer that they share."""
