"""Breaks a real cluster of real processes on purpose, under a workload whose answer is known, and looks whether every promise was kept."""
