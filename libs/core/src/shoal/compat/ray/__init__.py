"""Programs that say `import ray` run on Shoal, unchanged.

    python -m shoal.compat.ray program.py arguments…
    python -m shoal.compat.ray -m package.module arguments…

or, before the first `import ray`:

>>> import shoal.compat.ray
>>> shoal.compat.ray.install()
>>> import ray, ray.util.queue
>>> ray.util.queue.Queue.__module__
'shoal.util.queue'

`ray.a.b` is then the very module `shoal.a.b` (`ray.rllib` is `shoal.rl`), in this process and in its job's workers; what Shoal lacks is missing here too.
`ray.__version__` and `importlib.metadata.version("ray")` tell the version of Ray whose names these are.
"""

from .alias import RAY_VERSION, RayIsInstalled, install, is_installed

__all__ = ["RAY_VERSION", "RayIsInstalled", "install", "is_installed"]
