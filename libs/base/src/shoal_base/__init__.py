"""What Shoal's services and its core share. Imports nothing of ours."""

__version__ = "0.1.0"
WIRE_VERSION = 1
WIRE_OLDEST = 1
