__path__ = __import__("pkgutil").extend_path(__path__, __name__)
# Functions become tasks, classes become actors, values become objects, on one machine or many.
# What is named here is imported on first use, so that `import shoal` stays cheap.

TYPE_CHECKING = False
if TYPE_CHECKING:  # type checkers see the names; nothing is imported at run time
    from ._api import cancel, get, get_actor, get_gpu_ids, get_runtime_context, kill, put, remote, wait
    from ._cluster import available_resources, cluster_resources, nodes, timeline
    from ._core.engine import ObjectRef
    from ._ids import ActorClassID, ActorID, FunctionID, JobID, NodeID, PlacementGroupID, TaskID, UniqueID, WorkerID
    from ._init import init, is_initialized, shutdown
    from ._logging_config import LoggingConfig
    from .actor import method
    from .object_ref_generator import DynamicObjectRefGenerator, ObjectRefGenerator

    ObjectID = ObjectRef

__version__ = "0.1.0"

_EXPORTS = {
    "_api": ("cancel", "get", "get_actor", "get_gpu_ids", "get_runtime_context", "kill", "put", "remote", "wait"),
    "_cluster": ("available_resources", "cluster_resources", "nodes", "timeline"),
    "_init": ("init", "is_initialized", "shutdown"),
    "_core.engine": ("ObjectRef",),
    "_ids": ("ActorClassID", "ActorID", "FunctionID", "JobID", "NodeID", "PlacementGroupID", "TaskID", "UniqueID", "WorkerID"),
    "_logging_config": ("LoggingConfig",),
    "actor": ("method",),
    "object_ref_generator": ("DynamicObjectRefGenerator", "ObjectRefGenerator"),
}  # fmt: skip
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}
_ALIASES = {"ObjectID": "ObjectRef"}
# Distributions of their own: there when they are installed.
_LIBRARIES = ("data", "rl", "serve", "train", "tune")
_SUBMODULES = (
    "actor", "cloudpickle", "cluster_utils", "compat", "dag", "exceptions", "ext", "job_config", "remote_function", "runtime_context", "runtime_env", "util",
)  # fmt: skip
SCRIPT_MODE = 0
WORKER_MODE = 1

# Literal, so that type checkers see what is exported.
__all__ = [
    "ActorClassID", "ActorID", "DynamicObjectRefGenerator", "FunctionID", "JobID", "LoggingConfig", "NodeID", "ObjectID", "ObjectRef", "ObjectRefGenerator",
    "PlacementGroupID", "TaskID", "UniqueID", "WorkerID", "available_resources", "cancel", "cluster_resources", "get", "get_actor", "get_gpu_ids",
    "get_runtime_context", "init", "is_initialized", "kill", "method", "nodes", "put", "remote", "shutdown", "timeline", "wait", "SCRIPT_MODE", "WORKER_MODE",
    "__version__",
]  # fmt: skip


def __getattr__(name: str) -> object:
    from importlib import import_module

    real = _ALIASES.get(name, name)
    home = _HOME.get(real)
    if home is not None:
        value: object = getattr(import_module(f"{__name__}.{home}"), real)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    if name in _LIBRARIES:
        try:
            return import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name == f"{__name__}.{name}":
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}: shoal-{name} is not installed") from None
            raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_ALIASES, *_SUBMODULES})
