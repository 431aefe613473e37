"""Remote functions: what `@remote` makes of a function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from . import _functions, _options, _runtime, _scheduling
from ._arguments import Arity, holding, pack
from ._calls import store_full
from ._core.engine import TASK_STREAMING, ArenaFull
from .object_ref_generator import ObjectRefGenerator

if TYPE_CHECKING:
    from ._core.engine import ObjectRef

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")

_state = _runtime.state
_running = _runtime.running
# Limit: plans that one function keeps for different callers' scopes; a scope is one nesting depth or placement group.
_MAX_PLANS = 64

SINGLE, MANY, STREAM, NOTHING = 0, 1, 2, 3


class Plan:
    """All of a call that does not depend on its arguments, computed once for each connection and scope."""

    __slots__ = ("backpressure", "depth", "exported", "extra", "flags", "function_id", "generation", "lease_class", "max_retries", "num_returns", "refs",
                 "scope", "shape")  # fmt: skip

    generation: int
    scope: _runtime.Scope | None
    lease_class: int
    exported: _functions.Exported
    function_id: bytes
    refs: list[ObjectRef[Any]]  # that the function captured
    num_returns: int
    max_retries: int
    flags: int
    depth: int
    backpressure: int
    extra: bytes
    shape: int


def _no_plan() -> Plan:
    plan = Plan()
    plan.generation = -1
    plan.scope = None
    return plan


def result_shape(num_returns: Any, is_generator: bool) -> tuple[int, int]:
    """(shape, how many returns the engine is told)."""
    if num_returns is None:
        return (STREAM, 1) if is_generator else (SINGLE, 1)
    if num_returns == "streaming":
        return STREAM, 1
    if num_returns == "dynamic" or num_returns == 1:
        return SINGLE, 1
    return (NOTHING, 0) if num_returns == 0 else (MANY, num_returns)


def is_generator_function(function: Any) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


class RemoteFunction(Generic[P, R_co]):
    """A function that runs as a task. Call it with `.remote(...)`, which answers at once with a reference to the result."""

    def __init__(self, function: Callable[P, R_co], options: dict[str, Any]) -> None:
        if inspect.iscoroutinefunction(function):
            raise ValueError(
                f"'async def' should not be used for remote tasks ({function.__name__}). Wrap it: def f(): return asyncio.run({function.__name__}()), "
                "or use an actor with async methods."
            )
        functools.update_wrapper(self, function)
        self._function = function
        self._options = options
        self._function_name = f"{function.__module__}.{function.__qualname__}" if hasattr(function, "__qualname__") else repr(function)
        self._name = options.get("name") or getattr(function, "__qualname__", "") or "task"
        self._is_generator = is_generator_function(function)
        self._prepare(Arity(function, getattr(function, "__name__", "function")))
        self._exported: tuple[int, bytes, _functions.Exported] | None = None
        # (job, function id, references in it) when it came from a process that has stored it already: no need to pickle it again.
        self._stored: tuple[bytes, bytes, list[ObjectRef[Any]]] | None = None

    def _prepare(self, arity: Arity) -> None:
        self._arity = arity
        self._low = arity.low
        self._high = arity.high
        self._plan = _no_plan()
        self._plans: dict[int, Plan] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = getattr(self._function, "__name__", self._name)
        raise TypeError(f"Remote functions cannot be called directly. Instead of running '{name}()', try '{name}.remote()'.")

    # A generator function's items come as they are made. A reference may stand for the value of each argument: types can say so by position alone.
    @overload
    def remote(self: RemoteFunction[P, Iterator[T]], *args: P.args, **kwargs: P.kwargs) -> ObjectRefGenerator[T]: ...  # type: ignore[overload-overlap]
    @overload
    def remote(self: RemoteFunction[P, AsyncIterator[T]], *args: P.args, **kwargs: P.kwargs) -> ObjectRefGenerator[T]: ...  # type: ignore[overload-overlap]
    @overload
    def remote(self: RemoteFunction[P, Iterator[T]], a: ObjectRef[Any], /, *args: Any, **kwargs: Any) -> ObjectRefGenerator[T]: ...  # type: ignore[overload-overlap]
    @overload
    def remote(self: RemoteFunction[P, AsyncIterator[T]], a: ObjectRef[Any], /, *args: Any, **kwargs: Any) -> ObjectRefGenerator[T]: ...  # type: ignore[overload-overlap]
    @overload
    def remote(self, *args: P.args, **kwargs: P.kwargs) -> ObjectRef[R_co]: ...
    @overload
    def remote(self, a: ObjectRef[Any], /, *args: Any, **kwargs: Any) -> ObjectRef[R_co]: ...
    @overload
    def remote(self, a: Any, b: ObjectRef[Any], /, *args: Any, **kwargs: Any) -> ObjectRef[R_co]: ...
    @overload
    def remote(self, a: Any, b: Any, c: ObjectRef[Any], /, *args: Any, **kwargs: Any) -> ObjectRef[R_co]: ...
    @overload
    def remote(self, a: Any, b: Any, c: Any, d: ObjectRef[Any], /, *args: Any, **kwargs: Any) -> ObjectRef[R_co]: ...
    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Starts the task. Returns an ObjectRef; a list of them for num_returns > 1; an ObjectRefGenerator for a stream."""
        state = _state
        plan = self._plan
        now = _running.get() or state.process_running
        scope = state.default_scope if now is None else now.scope
        if plan.generation != state.generation or plan.scope is not scope:
            plan = self._replan(scope)
        if kwargs or not self._low <= len(args) <= self._high:
            self._arity.check(args, kwargs)
        if args or kwargs or plan.refs:
            payload, deps = pack(args, kwargs, self._name)
            if plan.refs:
                payload = holding(payload, plan.refs)
            try:
                refs = state.engine.submit(
                    plan.lease_class, plan.function_id, self._name, payload, deps, plan.num_returns, plan.max_retries, plan.flags, plan.depth,
                    plan.backpressure, plan.extra,
                )  # fmt: skip
            except ArenaFull as error:
                raise store_full(error, f"an argument of {self._name}") from None
        else:
            refs = state.engine.submit(
                plan.lease_class, plan.function_id, self._name, None, (), plan.num_returns, plan.max_retries, plan.flags, plan.depth,
                plan.backpressure, plan.extra,
            )  # fmt: skip
        shape = plan.shape
        if shape == SINGLE:
            return refs[0]
        if shape == MANY:
            return refs
        return ObjectRefGenerator(refs[0], state.engine) if shape == STREAM else None

    @overload
    def options(self, *, num_returns: int | str, **task_options: Any) -> Any: ...  # how many references there will be, types cannot say
    @overload
    def options(self, **task_options: Any) -> RemoteFunction[P, R_co]: ...
    def options(self, **task_options: Any) -> Any:
        """The same function with other options.

        Raises:
            ValueError, TypeError: naming the option.
        """
        changed = {**self._options, **_options.check_task(task_options)}
        made: RemoteFunction[P, R_co] = RemoteFunction.__new__(RemoteFunction)
        made.__dict__.update({k: v for k, v in self.__dict__.items() if k not in ("_plan", "_plans")})
        made._options = changed
        made._name = changed.get("name") or self._name
        made._prepare(self._arity)
        made._export_through = self
        return made

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """A node of a graph that runs this function when executed."""
        from .dag import FunctionNode

        return FunctionNode(self, args, kwargs, self._options)

    def _replan(self, scope: _runtime.Scope) -> Plan:
        engine = _runtime.ensure(f"{self._name}.remote()")
        now = _runtime.current()
        scope = _runtime.state.default_scope if now is None else now.scope
        generation = _state.generation
        plan = self._plans.get(id(scope))
        if plan is None or plan.generation != generation or plan.scope is not scope:
            plan = self._make_plan(engine, scope, generation)
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            self._plans[id(scope)] = plan
        self._plan = plan
        return plan

    def _make_plan(self, engine: Any, scope: _runtime.Scope, generation: int) -> Plan:
        options = self._options
        job_id = scope.job_id or _state.job_id
        if _state.limits is not None:
            _state.limits.check_depth(scope.depth, f"task {self._name}")
        plan = Plan()
        plan.exported = self._export(engine, job_id, generation)
        plan.function_id = plan.exported.function_id
        plan.refs = plan.exported.refs
        plan.lease_class = engine.lease_class(_scheduling.lease_class(options, scope, job_id, self._name))
        plan.shape, plan.num_returns = result_shape(options.get("num_returns"), self._is_generator)
        retries = options.get("max_retries")
        plan.max_retries = _options.DEFAULT_MAX_RETRIES if retries is None else retries
        plan.flags = (TASK_STREAMING if plan.shape == STREAM else 0) | _scheduling.task_flags(options)
        plan.depth = scope.depth
        plan.backpressure = max(0, options.get("_generator_backpressure_num_objects") or 0)
        plan.extra = _scheduling.task_extra(options)
        plan.scope = scope
        plan.generation = generation
        return plan

    def _export(self, engine: Any, job_id: bytes, generation: int) -> _functions.Exported:
        through = getattr(self, "_export_through", None)
        if through is not None:
            exported: _functions.Exported = through._export(engine, job_id, generation)
            return exported
        done = self._exported
        if done is None or done[:2] != (generation, job_id):
            if self._stored is not None and self._stored[0] == job_id:
                made = _functions.Exported(self._stored[1], 0, self._stored[2])
            else:
                made = _functions.export(engine, job_id, self._function, self._function_name)
            done = (generation, job_id, made)
            self._exported = done
        return done[2]

    def __getstate__(self) -> dict[str, Any]:
        # A remote function inside another one's closure travels as function and options; what belongs to this connection stays here.
        through = getattr(self, "_export_through", None)
        done = self._exported
        stored = (done[1], done[2].function_id, done[2].refs) if done is not None and done[0] == _state.generation else self._stored
        return {"function": self._function, "options": self._options, "name": self._name, "through": through, "stored": stored}

    def __setstate__(self, given: dict[str, Any]) -> None:
        RemoteFunction.__init__(self, given["function"], given["options"])
        self._name = given["name"]
        self._stored = given["stored"]
        if given["through"] is not None:
            self._export_through = given["through"]

    def __repr__(self) -> str:
        return f"RemoteFunction({self._function_name})"
