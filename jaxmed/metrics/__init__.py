"""Numbers from scores: NumPy in, numbers out."""
