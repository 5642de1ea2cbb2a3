"""A trained run over images, records and whole slides."""
