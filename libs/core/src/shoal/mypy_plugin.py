"""For mypy: what actor classes and the methods of their handles take and return, which Python's types cannot say.

In the configuration of mypy: `plugins = ["shoal.mypy_plugin"]`. Then `counter.add.remote(2)` is an `ObjectRef[int]` for a handle of `class Counter` with
`def add(self, n: int) -> int`, `counter.add.remote("2")` an error, and so is `counter.spoon`; `Counter.remote(...)` takes what `Counter.__init__` takes; and
a class with `@shoal.remote` above it has `remote`, `options` and `bind`: mypy itself applies no decorators of classes.
"""

from __future__ import annotations

from collections.abc import Callable

from mypy.errorcodes import ATTR_DEFINED
from mypy.nodes import ARG_POS, ARG_STAR, ARG_STAR2, Argument, FuncDef, OverloadedFuncDef, TypeInfo, Var
from mypy.plugin import AttributeContext, ClassDefContext, FunctionSigContext, MethodSigContext, Plugin
from mypy.plugins.common import MethodSpec, add_method_to_class, add_overloaded_method_to_class
from mypy.typeops import bind_self
from mypy.types import AnyType, CallableType, FunctionLike, Instance, Parameters, Type, TypeOfAny, UnionType, get_proper_type
from mypy.typevars import fill_typevars

_HANDLE = "shoal.actor.ActorHandle."
_ACTOR_CLASS = "shoal.actor.ActorClass"
_DECORATORS = frozenset({"shoal.remote", "shoal._api.remote"})
_TYPED_ACTOR = "shoal.actor.TypedActor"
# In the metadata of a class that has the decorator.
_SEEN = "shoal"
_REFERENCE = "shoal._core.engine.ObjectRef"
# What `@method` makes of a method: its arguments are the parameters and the result.
_TYPED_METHOD = "shoal.actor.TypedMethod"
# The annotation there names the class of what is made here.
_MADE = "_typed_method"
_ANY = AnyType(TypeOfAny.explicit)


class ShoalPlugin(Plugin):
    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        if not fullname.startswith(_HANDLE):
            return None
        name = fullname[len(_HANDLE) :]
        return None if name.startswith("_") else lambda context: _method(context, name)

    def get_method_signature_hook(self, fullname: str) -> Callable[[MethodSigContext], FunctionLike] | None:
        return _constructor if fullname == f"{_ACTOR_CLASS}.remote" else self._of_decorated(fullname)

    def get_function_signature_hook(self, fullname: str) -> Callable[[FunctionSigContext], FunctionLike] | None:
        return self._of_decorated(fullname)

    def _of_decorated(self, fullname: str) -> Callable[[MethodSigContext | FunctionSigContext], FunctionLike] | None:
        """`remote` of a class that `_actor_class` has seen."""
        name, _, member = fullname.rpartition(".")
        found = self.lookup_fully_qualified(name) if member == "remote" else None
        if found is None or not isinstance(actor := found.node, TypeInfo) or _SEEN not in actor.metadata:
            return None
        return lambda context: _with_parameters(context.default_signature, actor)

    def get_class_decorator_hook_2(self, fullname: str) -> Callable[[ClassDefContext], bool] | None:
        return _actor_class if fullname in _DECORATORS else None


# -- methods of handles ------------------------------------------------------------------------------------------------


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
    made = get_proper_type(handle.type.names[_MADE].type) if isinstance(handle, Instance) else None
    if not isinstance(made, Instance):
        return context.default_attr_type
    found = get_proper_type(symbol.type)
    if isinstance(found, Instance) and found.type.fullname == _TYPED_METHOD:
        return made.copy_modified(args=found.args)
    if not isinstance(found, CallableType):  # overloaded, or decorated by what has no types
        return context.default_attr_type
    bound = found if symbol.node is not None and getattr(symbol.node, "is_static", False) else bind_self(found, actor)
    parameters = Parameters(bound.arg_types, bound.arg_kinds, bound.arg_names)
    return made.copy_modified(args=[parameters, _awaited(bound.ret_type)])


def _awaited(returned: Type) -> Type:
    """What a coroutine gives in the end: the reference is to that."""
    proper = get_proper_type(returned)
    return proper.args[2] if isinstance(proper, Instance) and proper.type.fullname == "typing.Coroutine" else returned


# -- constructors ------------------------------------------------------------------------------------------------------


def _constructor(context: MethodSigContext) -> FunctionLike:
    """`remote` of an `ActorClass[T]`."""
    of = get_proper_type(context.type)
    actor = get_proper_type(of.args[0]) if isinstance(of, Instance) and of.args else None
    return _with_parameters(context.default_signature, actor.type, actor) if isinstance(actor, Instance) else context.default_signature


def _with_parameters(signature: FunctionLike, actor: TypeInfo, instance: Instance | None = None) -> FunctionLike:
    """The last of the signatures, which takes anything, with what the class's constructor takes instead; a reference stands for each value."""
    last = signature.items[-1]
    handle = get_proper_type(last.ret_type)
    made = instance or _instance(handle)
    declared = _declared(actor)
    if declared is None or made is None:
        return signature
    bound = bind_self(declared, made)
    if bound.variables or bound.param_spec() is not None:  # a generic constructor
        return signature
    reference = _reference_type(signature)
    types = [UnionType.make_union([one, reference.copy_modified(args=[one])]) if reference else one for one in bound.arg_types]
    given = made if actor.has_base(_TYPED_ACTOR) or not isinstance(handle, Instance) else handle.copy_modified(args=[made])
    return last.copy_modified(arg_types=types, arg_kinds=bound.arg_kinds, arg_names=bound.arg_names, variables=[], ret_type=given)


def _instance(handle: Type) -> Instance | None:
    """What a handle is of."""
    of = get_proper_type(handle.args[0]) if isinstance(handle, Instance) and handle.type.fullname == _HANDLE[:-1] else handle
    return of if isinstance(of, Instance) else None


def _declared(actor: TypeInfo) -> CallableType | None:
    node = actor.get_method("__init__")
    if node is None or isinstance(node, OverloadedFuncDef):
        return None
    found = get_proper_type(node.type)
    if found is None and isinstance(node, FuncDef):
        return None  # without annotations: anything goes
    if node.info.fullname == "builtins.object" and (new := actor.get_method("__new__")) is not None and new.info.fullname != "builtins.object":
        return None
    return found if isinstance(found, CallableType) else None


def _reference_type(signature: FunctionLike) -> Instance | None:
    for item in signature.items:
        for one in map(get_proper_type, item.arg_types):
            if isinstance(one, Instance) and one.type.fullname == _REFERENCE:
                return one
    return None


# -- decorated classes -------------------------------------------------------------------------------------------------


def _actor_class(context: ClassDefContext) -> bool:
    """Gives the class what its decorator gives it. Its constructor is looked up where `remote` is called: it may be inherited."""
    actor = context.cls.info
    itself = fill_typevars(actor)
    made = context.api.named_type_or_none(_ACTOR_CLASS, [itself])
    handle = context.api.named_type_or_none(_HANDLE[:-1], [itself])
    reference = context.api.named_type_or_none(_REFERENCE, [_ANY])
    if made is None or handle is None or reference is None:
        return False
    args, kwargs = Argument(Var("args", _ANY), _ANY, None, ARG_STAR), Argument(Var("kwargs", _ANY), _ANY, None, ARG_STAR2)
    first = Argument(Var("a", reference), reference, None, ARG_POS)  # tells _with_parameters what a reference is
    given = itself if actor.has_base(_TYPED_ACTOR) else handle
    add_overloaded_method_to_class(
        context.api, context.cls, "remote", [MethodSpec([first, args, kwargs], given), MethodSpec([args, kwargs], given)], is_classmethod=True)  # fmt: skip
    add_method_to_class(context.api, context.cls, "options", [kwargs], made, is_classmethod=True)
    add_method_to_class(context.api, context.cls, "bind", [args, kwargs], _ANY, is_classmethod=True)
    actor.metadata[_SEEN] = {}
    return True


def plugin(version: str) -> type[Plugin]:
    """What mypy calls."""
    return ShoalPlugin
