"""Lazy datasets on Shoal: read, transform, shuffle, group, join and feed to training, streaming and bounded in bytes."""
