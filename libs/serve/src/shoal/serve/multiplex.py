"""`@serve.multiplexed`: many models in one replica, the least recently used one makes room."""

from __future__ import annotations

import asyncio
import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from .context import get_multiplexed_model_id
from .exceptions import ServeConfigError


def multiplexed(func: Callable[..., Any] | None = None, max_num_models_per_replica: int = 3) -> Any:
    """Keeps what an async method `(self, model_id) -> model` returns, for up to `max_num_models_per_replica` models; -1: no limit.

    The model that was used longest ago makes room: it is dropped, and so its `__del__` runs. Handles send requests for a model to replicas that have it.

    Example::

        @serve.deployment
        class Models:
            @serve.multiplexed(max_num_models_per_replica=2)
            async def get_model(self, model_id: str):
                return load(model_id)

            async def __call__(self, request):
                model = await self.get_model(serve.get_multiplexed_model_id())
                return model.predict(await request.json())
    """
    limit = max_num_models_per_replica
    if isinstance(limit, bool) or not isinstance(limit, int) or (limit != -1 and limit < 1):
        raise ServeConfigError(f"max_num_models_per_replica must be a whole number of at least 1, or -1, got {limit!r}")

    def decorate(function: Callable[..., Any]) -> Any:
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"@serve.multiplexed takes an async method, got {function!r}; make it `async def`")
        name = f"__shoal_serve_models_{function.__name__}"

        async def get(self: Any, model_id: str = "") -> Any:
            models: _Models | None = self.__dict__.get(name)
            if models is None:
                models = self.__dict__[name] = _Models(limit)
            return await models.get(model_id or get_multiplexed_model_id(), lambda wanted: function(self, wanted))

        get.__name__, get.__qualname__, get.__doc__ = function.__name__, function.__qualname__, function.__doc__
        return get

    return decorate(func) if func is not None else decorate


class _Models:
    """The loaded models of one instance, least recently used first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._models: OrderedDict[str, asyncio.Future[Any]] = OrderedDict()

    async def get(self, model_id: str, load: Callable[[str], Any]) -> Any:
        if not isinstance(model_id, str) or not model_id:
            raise ValueError("the request names no model: give the handle options(multiplexed_model_id=...), or the header serve_multiplexed_model_id")
        known = self._models.get(model_id)
        if known is None:
            while 0 < self._limit <= len(self._models):
                await self._unload(next(iter(self._models)))
            known = self._models[model_id] = asyncio.ensure_future(load(model_id))
            known.add_done_callback(lambda done: self._forget_failed(model_id, done))
        self._models.move_to_end(model_id)
        return await asyncio.shield(known)  # others may wait for the same model

    def _forget_failed(self, model_id: str, done: asyncio.Future[Any]) -> None:
        if (done.cancelled() or done.exception() is not None) and self._models.get(model_id) is done:
            del self._models[model_id]

    async def _unload(self, model_id: str) -> None:
        # Not before it is loaded: the memory of both would be needed at once.
        await asyncio.wait([self._models.pop(model_id)])
