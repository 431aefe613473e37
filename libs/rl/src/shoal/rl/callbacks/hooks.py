"""Which callbacks there are, so that events nobody asked for cost nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import ConfigError
from ..metrics import MetricsLogger
from .callbacks import RLlibCallback


class Hooks:
    """Methods that a user's class overrides, and single functions, by event."""

    def __init__(self, callbacks: list[RLlibCallback], functions: dict[str, Callable[..., Any]]) -> None:
        self.logger = MetricsLogger()
        self._called: dict[str, list[Callable[..., Any]]] = {}
        for callback in callbacks:
            for event in (name for name in dir(RLlibCallback) if name.startswith("on_")):
                if getattr(type(callback), event) is not getattr(RLlibCallback, event):
                    self._called.setdefault(event, []).append(getattr(callback, event))
        for event, function in functions.items():
            self._called.setdefault(event, []).append(function)

    @classmethod
    def of(cls, config: Any) -> Hooks:
        """Raises ConfigError: `callbacks_class` is no subclass of RLlibCallback."""
        given = config.callbacks_class
        classes = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
        for one in classes:
            if not (isinstance(one, type) and issubclass(one, RLlibCallback)):
                raise ConfigError(f"callbacks_class={one!r} must be a subclass of shoal.rl.callbacks.RLlibCallback")
        prefix = "callbacks_on_"
        functions = {name.removeprefix("callbacks_"): value for name, value in config.items() if name.startswith(prefix) and value is not None}
        return cls([one() for one in classes], functions)

    def __bool__(self) -> bool:
        return bool(self._called)

    def has(self, event: str) -> bool:
        return event in self._called

    def call(self, event: str, **given: Any) -> None:
        for function in self._called.get(event, ()):
            function(**given)
