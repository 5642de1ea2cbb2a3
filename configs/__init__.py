"""Configurations: one file a method, `get_config(preset)`."""
