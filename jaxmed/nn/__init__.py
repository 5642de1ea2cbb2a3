"""Network blocks that more than one method uses, and the gradient step."""
