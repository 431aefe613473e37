"""Reinforcement learning on Shoal: environment runners as actors, learners, and algorithms that are known to learn."""
