"""What a caller must know of an actor and its methods, read off the class once. Travels inside handles."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

from ._arguments import Arity
from .remote_function import is_generator_function

METHOD_OPTIONS = "__shoal_method_options__"


class MethodMeta:
    """What the caller must know of a method. Travels in handles."""

    __slots__ = ("arity", "group", "is_generator", "max_task_retries", "name", "num_returns", "recorded", "retry_exceptions", "timeout_s")

    def __init__(self, name: str, arity: Arity, options: dict[str, Any], is_generator: bool) -> None:
        self.name = name
        self.arity = arity
        self.num_returns = options.get("num_returns")
        self.group = options.get("concurrency_group") or ""
        self.max_task_retries = options.get("max_task_retries")
        self.retry_exceptions = bool(options.get("retry_exceptions"))
        self.recorded = options.get("enable_task_events") is not False
        self.timeout_s = options.get("timeout_s")
        self.is_generator = is_generator

    def __reduce__(self) -> tuple[Any, ...]:
        options = {
            "num_returns": self.num_returns, "concurrency_group": self.group, "max_task_retries": self.max_task_retries,
            "retry_exceptions": self.retry_exceptions, "enable_task_events": self.recorded, "timeout_s": self.timeout_s,
        }  # fmt: skip
        return MethodMeta, (self.name, self.arity, options, self.is_generator)


class ActorMeta:
    """What the caller must know of an actor's class and options. Travels in handles."""

    __slots__ = ("actor_id", "backpressure", "class_name", "groups", "max_pending_calls", "max_task_retries", "methods", "name", "namespace", "ordered",
                 "packed")  # fmt: skip

    def __init__(self, actor_id: bytes, class_name: str, methods: dict[str, MethodMeta], ordered: bool, max_task_retries: int, max_pending_calls: int,
                 backpressure: int, name: str, namespace: str, groups: tuple[str, ...]) -> None:  # fmt: skip
        self.actor_id = actor_id
        self.class_name = class_name
        self.methods = methods
        self.ordered = ordered
        self.max_task_retries = max_task_retries
        self.max_pending_calls = max_pending_calls
        self.backpressure = backpressure
        self.name = name
        self.namespace = namespace
        self.groups = groups
        self.packed: bytes | None = None

    def pickled(self) -> bytes:
        """These facts in bytes, made once: a handle may be passed on often."""
        if self.packed is None:
            self.packed = pickle.dumps(self, 5)
        return self.packed

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorMeta, tuple(getattr(self, slot) for slot in (
            "actor_id", "class_name", "methods", "ordered", "max_task_retries", "max_pending_calls", "backpressure", "name", "namespace",
            "groups"))  # fmt: skip


def describe_methods(cls: type) -> dict[str, MethodMeta]:
    found: dict[str, MethodMeta] = {}
    for name in dir(cls):
        if name in ("__class__", "__new__", "__init_subclass__", "__subclasshook__") or (name in vars(object) and getattr(cls, name) is getattr(object, name)):
            continue
        static = inspect.getattr_static(cls, name)
        function = static.__func__ if isinstance(static, staticmethod | classmethod) else static
        if not inspect.isroutine(function) or (name.startswith("__") and name.endswith("__") and inspect.isbuiltin(getattr(cls, name))):
            continue
        options = getattr(function, METHOD_OPTIONS, {})
        arity = Arity(function, name, skip_first=not isinstance(static, staticmethod))
        found[name] = MethodMeta(name, arity, options, is_generator_function(function))
    return found


def has_async_methods(cls: type) -> bool:
    return any(
        inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f) for f in (inspect.getattr_static(cls, name, None) for name in dir(cls)) if callable(f)
    )


def _any_arity() -> Arity:
    arity = Arity.__new__(Arity)
    arity.name, arity.low, arity.high, arity.names, arity.signature = "method", 0, 1 << 30, None, None
    return arity


ANY_ARITY = _any_arity()


def no_arguments(class_name: str) -> Arity:
    arity = Arity.__new__(Arity)
    arity.name, arity.low, arity.high, arity.names, arity.signature = class_name, 0, 0, None, inspect.Signature()
    return arity


def check_groups(methods: dict[str, MethodMeta], groups: dict[str, int], class_name: str) -> None:
    for meta in methods.values():
        if meta.group and meta.group not in groups:
            raise ValueError(f"{class_name}.{meta.name} belongs to concurrency group {meta.group!r}, which concurrency_groups={groups} does not define")
