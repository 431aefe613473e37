"""The node agent: local scheduler, leases, workers, bundles, logs. Knows nothing of the core: a worker is a command line."""

__version__ = "0.1.0"
