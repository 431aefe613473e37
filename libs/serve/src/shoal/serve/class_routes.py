"""`@serve.ingress`: a class whose methods are routes of a FastAPI or other ASGI application."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

ASGI_ATTRIBUTE = "__shoal_serve_asgi__"


def ingress(app: Any) -> Callable[[type], type]:
    """Serves a class by an ASGI application, usually FastAPI.

    Functions that `app` routes to and that are methods of the class get the replica's instance as `self`. `app` may be a function without arguments that
    returns the application: it is called in the replica.

    Example::

        app = FastAPI()

        @serve.deployment
        @serve.ingress(app)
        class Calculator:
            @app.get("/double")
            def double(self, x: int) -> int:
                return 2 * x
    """
    if not callable(app):
        raise TypeError(f"@serve.ingress takes an ASGI application or a function that returns one, got {app!r}")

    def decorate(cls: type) -> type:
        if not inspect.isclass(cls):
            raise TypeError(f"@serve.ingress goes on a class, and below @serve.deployment; got {cls!r}")
        setattr(cls, ASGI_ATTRIBUTE, (app,))  # in a tuple: a function would become a method
        return cls

    return decorate


def is_asgi(target: Any) -> bool:
    return hasattr(target, ASGI_ATTRIBUTE)


def asgi_app(instance: Any) -> Any:
    """The application of an instance, its routes bound to it."""
    app = getattr(type(instance), ASGI_ATTRIBUTE)[0]
    if inspect.isfunction(app) and not inspect.signature(app).parameters:
        app = app()
    router = getattr(app, "router", app)
    routes = getattr(router, "routes", None)
    if isinstance(routes, list):
        routes[:] = [_bound(route, instance) for route in routes]
    return app


def _bound(route: Any, instance: Any) -> Any:
    endpoint = getattr(route, "endpoint", None)
    name = getattr(endpoint, "__name__", None)
    owner = next((cls for cls in type(instance).__mro__ if isinstance(name, str) and inspect.getattr_static(cls, name, None) is endpoint), None)
    if owner is None or not isinstance(name, str):
        return route
    # FastAPI has read `self` as a parameter of the query: a route of the same kind is made anew, with the bound method.
    kind = type(route)
    given = {n: getattr(route, n) for n in inspect.signature(kind.__init__).parameters if n != "self" and hasattr(route, n)}
    return kind(**{**given, "endpoint": getattr(instance, name)})
