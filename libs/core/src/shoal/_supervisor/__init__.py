"""The supervisor: one process per node that starts the services, restarts them, and ends everything with its owner.

It is started as ``python -m shoal._supervisor`` with its configuration on a pipe. This package's modules stay light: the driver imports some of them.
"""
