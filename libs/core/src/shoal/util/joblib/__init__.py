"""joblib's parallel calls, and so scikit-learn's, on a cluster.

    import joblib
    from shoal.util.joblib import register_shoal

    register_shoal()
    with joblib.parallel_backend("shoal"):
        GridSearchCV(model, grid).fit(x, y)

Arguments of 1 MiB and more are put into the object store once for all calls that take them, and are read-only there. `register_ray` registers the same under
the name "ray".
"""

from __future__ import annotations

__all__ = ["register_ray", "register_shoal"]


def register_shoal(name: str = "shoal") -> None:
    """Raises ImportError when joblib is missing."""
    try:
        from joblib.parallel import register_parallel_backend
    except ImportError as error:
        raise ImportError("joblib is not installed: pip install joblib") from error
    from .backend import ShoalBackend

    register_parallel_backend(name, ShoalBackend)


def register_ray() -> None:
    register_shoal("ray")
