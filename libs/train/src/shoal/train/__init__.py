"""Distributed training on Shoal: a function on many workers, checkpoints, and resuming after failures."""
