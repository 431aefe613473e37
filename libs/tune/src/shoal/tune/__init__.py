"""Hyperparameter search on Shoal: search spaces, schedulers, and experiments that survive their driver."""
