"""The global control store: what must outlive a process. Runs alone: `python -m shoal_gcs --help`."""

__version__ = "0.1.0"
