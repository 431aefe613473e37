"""Parts of `ray.util` that only Ray has."""
