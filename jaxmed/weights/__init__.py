"""Foreign checkpoints: names, shapes, readers, registry."""
