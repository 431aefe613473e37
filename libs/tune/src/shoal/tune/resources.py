"""What a trial needs of the cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["PlacementGroupFactory", "Ledger", "as_factory", "with_resources"]

RESOURCES_ATTRIBUTE = "_shoal_tune_resources"
DEFAULT: dict[str, float] = {"CPU": 1}
STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
_SLACK = 1e-6


class PlacementGroupFactory:
    """What a trial needs: one bundle for the trial itself, and more for the tasks and actors that it starts.

    Args:
        bundles: resources of each, such as `[{"CPU": 1}, {"CPU": 2}, {"CPU": 2}]`. The first may be empty: then the trial runs in the next one.
        strategy: PACK, SPREAD, STRICT_PACK or STRICT_SPREAD.

    >>> PlacementGroupFactory([{"CPU": 1}, {"CPU": 2}]).required_resources
    {'CPU': 3}
    """

    def __init__(self, bundles: list[dict[str, float]], strategy: str = "PACK") -> None:
        if not isinstance(bundles, list | tuple) or not bundles:
            raise ValueError(f"PlacementGroupFactory: a list of at least one bundle is needed, got {bundles!r}")
        if strategy not in STRATEGIES:
            raise ValueError(f"PlacementGroupFactory: the strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
        self.head_bundle_is_empty = not any(bundles[0].values())
        self.bundles = [clean(bundle) for bundle in bundles]
        if self.head_bundle_is_empty:
            del self.bundles[0]
        self.strategy = strategy

    @property
    def head(self) -> dict[str, float]:
        """What the trial itself takes."""
        return {} if self.head_bundle_is_empty else self.bundles[0]

    @property
    def head_cpus(self) -> float:
        return self.head.get("CPU", 0)

    @property
    def required_resources(self) -> dict[str, float]:
        """Of all bundles together."""
        total: dict[str, float] = {}
        for bundle in self.bundles:
            for name, amount in bundle.items():
                total[name] = total.get(name, 0) + amount
        return total

    @property
    def needs_group(self) -> bool:
        """Whether resources are held for more than the trial itself."""
        return len(self.bundles) > 1 or (self.head_bundle_is_empty and bool(self.bundles))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PlacementGroupFactory):
            return NotImplemented
        return (self.bundles, self.strategy, self.head_bundle_is_empty) == (other.bundles, other.strategy, other.head_bundle_is_empty)

    def __hash__(self) -> int:
        return hash((str(self.bundles), self.strategy, self.head_bundle_is_empty))

    def __repr__(self) -> str:
        shown = [{}, *self.bundles] if self.head_bundle_is_empty else self.bundles
        return f"PlacementGroupFactory({shown}, strategy={self.strategy!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return PlacementGroupFactory, ([{}, *self.bundles] if self.head_bundle_is_empty else self.bundles, self.strategy)


def clean(resources: Mapping[str, Any]) -> dict[str, float]:
    """Checked, with names as the cluster has them, without zeros. Raises ValueError."""
    found: dict[str, float] = {}
    if not isinstance(resources, Mapping):
        raise ValueError(f"resources must be a dict of names to amounts, got {resources!r}")
    for name, amount in resources.items():
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount < float("inf"):
            raise ValueError(f"resources: the amount of {name!r} must be a number from 0 on, got {amount!r}")
        if amount:
            found[{"cpu": "CPU", "gpu": "GPU"}.get(name, name)] = amount
    return found


def as_factory(resources: Any) -> PlacementGroupFactory:
    """From a dict or a factory; a dict without CPU takes none. Raises ValueError."""
    if isinstance(resources, PlacementGroupFactory):
        return resources
    return PlacementGroupFactory([clean(resources)])


def with_resources(trainable: Any, resources: Mapping[str, float] | PlacementGroupFactory | Callable[[dict[str, Any]], PlacementGroupFactory]) -> Any:
    """The trainable, with what each of its trials needs.

    Args:
        resources: `{"cpu": 2, "gpu": 1}`, a `PlacementGroupFactory`, or a function that gives one of these for a configuration. What a trainer inside of the
            trial needs, it reserves itself.

    Raises:
        ValueError: amounts that are none.

    >>> with_resources(lambda config: None, {"cpu": 2})._shoal_tune_resources.required_resources
    {'CPU': 2}
    """
    checked = resources if callable(resources) and not isinstance(resources, PlacementGroupFactory) else as_factory(resources)
    return _marked(trainable, checked)


def _marked(trainable: Any, resources: Any) -> Any:
    # The user's own function or class is not changed: it may be used elsewhere with other resources.
    if isinstance(trainable, type):
        return type(trainable.__name__, (trainable,), {RESOURCES_ATTRIBUTE: staticmethod(resources) if callable(resources) else resources,
                                                       "__module__": trainable.__module__, "__doc__": trainable.__doc__})  # fmt: skip
    from .function_trainable import Wrapped

    inner = trainable if isinstance(trainable, Wrapped) else Wrapped(trainable)
    return inner.with_attribute(RESOURCES_ATTRIBUTE, resources)


def resources_of(trainable: Any, config: dict[str, Any]) -> PlacementGroupFactory:
    """What a trial of this configuration needs: as `with_resources` or the class's `default_resource_request` say; else one CPU."""
    given = getattr(trainable, RESOURCES_ATTRIBUTE, None)
    if given is None and isinstance(trainable, type) and hasattr(trainable, "default_resource_request"):
        given = trainable.default_resource_request(config)
    if given is None:
        return PlacementGroupFactory([DEFAULT])
    return as_factory(given(config)) if callable(given) and not isinstance(given, PlacementGroupFactory) else as_factory(given)


class Ledger:
    """What of the cluster the trials have taken. It does not know what others have taken: their trials wait in the cluster's own queue.

    Args:
        total: of all nodes. None: no limit.
        free_limit: how many trials may run at once that need nothing.
    """

    def __init__(self, total: Mapping[str, float] | None = None, free_limit: int = 64) -> None:
        self.total = dict(total) if total is not None else None
        self.free_limit = free_limit
        self.used: dict[str, float] = {}
        self.holders = 0

    def fits(self, need: Mapping[str, float]) -> bool:
        """Whether a trial may start. The first always may: when it can never run, the cluster says why."""
        if self.holders == 0:
            return True
        if not need:
            return self.holders < self.free_limit
        if self.total is None:
            return True
        return all(self.used.get(name, 0) + amount <= self.total.get(name, 0) + _SLACK for name, amount in need.items())

    def take(self, need: Mapping[str, float]) -> None:
        self.holders += 1
        for name, amount in need.items():
            self.used[name] = self.used.get(name, 0) + amount

    def give_back(self, need: Mapping[str, float]) -> None:
        self.holders -= 1
        for name, amount in need.items():
            self.used[name] -= amount
