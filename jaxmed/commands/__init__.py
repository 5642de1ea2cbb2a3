"""The `jaxmed` command, and what only it does."""
