"""For mypy: what the methods of an actor's handle take and return, which Python's types cannot say.

In the configuration of mypy: `plugins = ["shoal.mypy_plugin"]`. Then `counter.add.remote(2)` is an `ObjectRef[int]` for a handle of `class Counter` with
`def add(self, n: int) -> int`, `counter.add.remote("2")` an error, and so is `counter.spoon`.
"""

from __future__ import annotations

from collections.abc import Callable

from mypy.errorcodes import ATTR_DEFINED
from mypy.plugin import AttributeContext, Plugin
from mypy.typeops import bind_self
from mypy.types import CallableType, Instance, Parameters, Type, get_proper_type

_HANDLE = "shoal.actor.ActorHandle."
# The annotation there names the class of what is made here.
_MADE = "_typed_method"


class ShoalPlugin(Plugin):
    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        if not fullname.startswith(_HANDLE):
            return None
        name = fullname[len(_HANDLE) :]
        return None if name.startswith("_") else lambda context: _method(context, name)


def _method(context: AttributeContext, name: str) -> Type:
    handle = get_proper_type(context.type)
    actor = get_proper_type(handle.args[0]) if isinstance(handle, Instance) and handle.args else None
    if not isinstance(actor, Instance):
        return context.default_attr_type
    symbol = actor.type.get(name)
    if symbol is None:
        if actor.type.get("__getattr__") is None:
            context.api.fail(f'Actor "{actor.type.name}" has no method "{name}"', context.context, code=ATTR_DEFINED)
        return context.default_attr_type
    found = get_proper_type(symbol.type)
    if not isinstance(found, CallableType):  # overloaded, or decorated by what has no types
        return context.default_attr_type
    bound = found if symbol.node is not None and getattr(symbol.node, "is_static", False) else bind_self(found, actor)
    parameters = Parameters(bound.arg_types, bound.arg_kinds, bound.arg_names)
    made = get_proper_type(handle.type.names[_MADE].type) if isinstance(handle, Instance) else None
    return made.copy_modified(args=[parameters, _awaited(bound.ret_type)]) if isinstance(made, Instance) else context.default_attr_type


def _awaited(returned: Type) -> Type:
    """What a coroutine gives in the end: the reference is to that."""
    proper = get_proper_type(returned)
    return proper.args[2] if isinstance(proper, Instance) and proper.type.fullname == "typing.Coroutine" else returned


def plugin(version: str) -> type[Plugin]:
    """What mypy calls."""
    return ShoalPlugin
