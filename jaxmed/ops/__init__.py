"""Pure functions on arrays of images."""
