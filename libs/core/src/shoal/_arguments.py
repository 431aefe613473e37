"""A call's arguments: into one value and the references beside it, and out again."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Sequence
from typing import Any

from ._core.engine import KIND_ERROR, KIND_PICKLE, ObjectRef, Payload
from ._serialization import _ATOMS, explain_failure, is_flat, load, pickle_value

# Position of keyword arguments in a task's dependencies.
KEYWORD = 0x8000
MAX_ARGUMENTS = KEYWORD - 1

_dumps = pickle.dumps
Dependencies = Sequence[tuple[int, ObjectRef[Any]]]


def pack(args: tuple[Any, ...], kwargs: dict[str, Any], what: str) -> tuple[Payload, Dependencies]:
    """`what` names the callee in errors."""
    deps: list[tuple[int, ObjectRef[Any]]] = []
    plain = True
    atoms = _ATOMS
    for position, value in enumerate(args):
        kind = type(value)
        if kind not in atoms:
            if kind is ObjectRef:
                deps.append((position, value))
            elif plain and not is_flat(value, kind):
                plain = False
    if kwargs:
        for position, value in enumerate(kwargs.values(), KEYWORD):
            kind = type(value)
            if kind not in atoms:
                if kind is ObjectRef:
                    deps.append((position, value))
                elif plain and not is_flat(value, kind):
                    plain = False
    if deps:
        args, kwargs = _without_references(args, kwargs, deps)
    if plain:
        return Payload(KIND_PICKLE, _dumps((args, kwargs), 5)), deps
    return _pack_any(args, kwargs, deps, what)


def holding(payload: Payload | None, refs: Sequence[ObjectRef[Any]]) -> Payload:
    """Arguments of a call that keeps `refs` alive until its end, as it does what its arguments contain: its function captured them."""
    if payload is None:
        payload = Payload(KIND_PICKLE, _dumps(((), {}), 5))
    return Payload(payload.kind, payload.inband, payload.buffers, [*payload.refs, *refs])


def _without_references(args: tuple[Any, ...], kwargs: dict[str, Any], deps: Dependencies) -> tuple[Any, dict[str, Any]]:
    if len(args) > MAX_ARGUMENTS or len(kwargs) > MAX_ARGUMENTS:
        raise ValueError(f"{len(args)} positional and {len(kwargs)} keyword arguments; the limit is {MAX_ARGUMENTS} of each")
    positional = list(args)
    names = list(kwargs) if kwargs else []
    keywords = dict(kwargs)
    for position, _ in deps:
        if position < KEYWORD:
            positional[position] = None
        else:
            keywords[names[position - KEYWORD]] = None
    return tuple(positional), keywords


def _pack_any(args: tuple[Any, ...], kwargs: dict[str, Any], deps: list[tuple[int, ObjectRef[Any]]], what: str) -> tuple[Payload, Dependencies]:
    try:
        inband, buffers, refs = pickle_value((args, kwargs))
    except Exception as error:
        raise _name_the_argument(args, kwargs, what, error) from error
    return Payload(KIND_PICKLE, inband, buffers, refs), deps


def _name_the_argument(args: tuple[Any, ...], kwargs: dict[str, Any], what: str, error: Exception) -> TypeError:
    from ._serialization import failure_of

    for i, value in enumerate(args):
        failure = failure_of(value)
        if failure is not None:
            return _of_call(explain_failure(value, f"args[{i}]", failure), what)
    for name, value in kwargs.items():
        failure = failure_of(value)
        if failure is not None:
            return _of_call(explain_failure(value, f"kwargs[{name!r}]", failure), what)
    return _of_call(explain_failure((args, kwargs), "(args, kwargs)", error), what)


def _of_call(error: TypeError, what: str) -> TypeError:
    return TypeError(f"calling {what}: {error}")


def unpack(task: Any) -> tuple[Sequence[Any], dict[str, Any], Any]:
    """(args, kwargs, error): the third is the Value of a failed argument, or None."""
    value = task.args()
    if value is None:
        return (), {}, None
    args, kwargs = load(value)
    deps = task.deps()
    if deps:
        args = list(args)
        names = None
        for position, item in deps:
            if item.kind == KIND_ERROR:
                return args, kwargs, item
            if position < KEYWORD:
                args[position] = load(item)
            else:
                if names is None:
                    names = list(kwargs)
                kwargs[names[position - KEYWORD]] = load(item)
    return args, kwargs, None


class Arity:
    """How many arguments a callable takes, so that a wrong call fails at the caller without looking at signatures for a right one."""

    __slots__ = ("high", "low", "name", "names", "signature")

    def __init__(self, function: Callable[..., Any], name: str, skip_first: bool = False) -> None:
        self.name = name
        self.low = 0
        self.high = 1 << 30
        self.names: tuple[str, ...] | None = None  # of all parameters, where each can be given by position and by name
        self.signature: inspect.Signature | None = None
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            return
        parameters = list(signature.parameters.values())
        if skip_first and parameters and parameters[0].kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
            parameters = parameters[1:]
        self.signature = signature.replace(parameters=parameters)
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self.low = sum(p.default is p.empty for p in positional)
        if not any(p.kind is p.VAR_POSITIONAL for p in parameters):
            self.high = len(positional)
            if len(positional) == len(parameters) and all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters):
                self.names = tuple(p.name for p in parameters)
        if any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
            # No positional call can be right: every call goes through the signature.
            self.high = -1

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raises TypeError like a call of the function itself would."""
        names = self.names
        if names is not None:
            # The common case without inspect: every keyword names a parameter that is left, and what is left without a default is named.
            given = len(args)
            if given <= len(names) and kwargs.keys() <= set(names[given:]) and all(name in kwargs for name in names[given : self.low]):
                return
        if self.signature is None:
            return
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}(): {error}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_arity, (self.name, self.low, self.high, self.names, None if self.signature is None else _shape(self.signature))


def _shape(signature: inspect.Signature) -> list[tuple[str, int, bool]]:
    # Defaults and annotations may be anything, unpicklable too; only their presence matters here.
    return [(p.name, int(p.kind), p.default is not p.empty) for p in signature.parameters.values()]


def _rebuild_arity(name: str, low: int, high: int, names: tuple[str, ...] | None, shape: list[tuple[str, int, bool]] | None) -> Arity:
    arity = Arity.__new__(Arity)
    arity.name, arity.low, arity.high, arity.names = name, low, high, names
    kinds = {int(k): k for k in (
        inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)}  # fmt: skip
    arity.signature = None if shape is None else inspect.Signature(
        [inspect.Parameter(n, kinds[k], default=None if has else inspect.Parameter.empty) for n, k, has in shape]
    )  # fmt: skip
    return arity
