"""The streaming executor."""
