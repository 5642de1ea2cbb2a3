"""Whole slides: reading, tissue, grids, annotations, heat maps."""
