"""The head's HTTP server: health, version, state as JSON, metrics, logs, and routes of libraries. A process of its own, forked at the first connection."""
