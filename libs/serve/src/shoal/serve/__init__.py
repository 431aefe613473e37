"""Model serving on Shoal: deployments, composition, HTTP, autoscaling and rolling updates."""
