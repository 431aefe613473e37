"""Search algorithms: random and grid, Optuna, and wrappers around them."""

from typing import Any

from .basic_variant import BasicVariantGenerator
from .concurrency_limiter import ConcurrencyLimiter
from .repeater import Repeater
from .searcher import Searcher

__all__ = ["BasicVariantGenerator", "ConcurrencyLimiter", "Repeater", "Searcher", "create_searcher"]


def create_searcher(search_alg: str, **kwargs: Any) -> Searcher:
    """A searcher by name: "random", "variant_generator" or "optuna"; the rest are its arguments.

    Raises:
        ValueError: another name.
    """
    if search_alg in ("random", "variant_generator"):
        return BasicVariantGenerator(**kwargs)
    if search_alg == "optuna":
        from .optuna import OptunaSearch

        return OptunaSearch(**kwargs)
    raise ValueError(f"there is no search algorithm {search_alg!r}: known are optuna, random, variant_generator")
