"""Metrics of deployments: those of `shoal.util.metrics`, that say by themselves which replica counts.

Made in a replica, a metric has the tags `deployment`, `replica` and `application` besides its own; one that is made with the tag key `route` gets the route
of the request that is being answered, unless a record gives another. Made elsewhere it is an ordinary one.

Example::

    @serve.deployment
    class Model:
        def __init__(self):
            self.answers = serve.metrics.Counter("answers", "Answers by language.", tag_keys=("language", "route"))

        def __call__(self, request):
            self.answers.inc(tags={"language": "en"})
"""

from __future__ import annotations

from shoal.util import metrics

from .context import current_request, process

__all__ = ["Counter", "Gauge", "Histogram"]

OWN_TAGS = ("deployment", "replica", "application")
ROUTE = "route"

Tags = dict[str, str]


def _keys(name: str, tag_keys: tuple[str, ...] | None) -> tuple[str, ...]:
    keys = tuple(tag_keys or ())
    if process.replica is None:
        return keys
    for key in OWN_TAGS:
        if key in keys:
            raise ValueError(f"metric {name}: the tag {key!r} is added in every replica; leave it out of tag_keys")
    return (*keys, *OWN_TAGS)


class _Deployed(metrics.Metric):
    """What a metric of a replica knows by itself."""

    def set_default_tags(self, default_tags: Tags) -> _Deployed:
        """Values for tags that a record does not give. Returns this metric. Raises as that of `shoal.util.metrics` does."""
        own = {}
        replica = process.replica
        if replica is not None and OWN_TAGS[0] in self.info["tag_keys"]:
            own = dict(zip(OWN_TAGS, (replica.deployment, replica.replica_tag, replica.app_name), strict=True))
        super().set_default_tags({**default_tags, **own})
        return self

    def _with_route(self, tags: Tags | None) -> Tags | None:
        if ROUTE not in self.info["tag_keys"] or ROUTE in (tags or {}):
            return tags
        request = current_request.get()
        return {**(tags or {}), ROUTE: request.route if request is not None else ""}


class Counter(_Deployed, metrics.Counter):
    """A number that only grows; see `shoal.util.metrics.Counter`.

    Raises:
        ValueError: a tag key that every replica adds.
    """

    def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] | None = None) -> None:
        super().__init__(name, description, _keys(name, tag_keys))
        self.set_default_tags({})

    def inc(self, value: int | float = 1.0, tags: Tags | None = None) -> None:
        super().inc(value, self._with_route(tags))


class Gauge(_Deployed, metrics.Gauge):
    """A number that goes up and down; see `shoal.util.metrics.Gauge`.

    Raises:
        ValueError: a tag key that every replica adds.
    """

    def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] | None = None) -> None:
        super().__init__(name, description, _keys(name, tag_keys))
        self.set_default_tags({})

    def set(self, value: int | float | None, tags: Tags | None = None) -> None:
        super().set(value, self._with_route(tags))


class Histogram(_Deployed, metrics.Histogram):
    """How values are spread over buckets; see `shoal.util.metrics.Histogram`.

    Raises:
        ValueError: a tag key that every replica adds.
    """

    def __init__(self, name: str, description: str = "", boundaries: list[float] | None = None, tag_keys: tuple[str, ...] | None = None) -> None:
        super().__init__(name, description, boundaries, _keys(name, tag_keys))
        self.set_default_tags({})

    def observe(self, value: int | float, tags: Tags | None = None) -> None:
        super().observe(value, self._with_route(tags))
