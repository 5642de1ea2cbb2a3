"""One file a method: its equations, networks, losses, phases and score."""
