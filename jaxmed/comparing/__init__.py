"""Finished runs side by side, and several run one after another."""
