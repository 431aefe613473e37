"""Modules (networks) and learners."""
