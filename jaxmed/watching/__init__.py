"""Looks at training from outside, and which of its states is kept."""
