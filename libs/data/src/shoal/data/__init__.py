"""Lazy datasets on Shoal: read, transform, shuffle, group, join and feed to training, streaming and bounded in bytes.

Names are imported on first use.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:  # type checkers see the names; nothing is imported at run time
    from ._io.writing import SaveMode
    from .compute import ActorPoolStrategy, TaskPoolStrategy
    from .context import DataContext, ExecutionOptions, ExecutionResources
    from .dataset import Dataset, MaterializedDataset, Schema
    from .datasource import Datasink, Datasource, ReadTask
    from .grouped_data import GroupedData
    from .iterator import DataIterator
    from .preprocessors import Preprocessor
    from .read_api import (
        from_arrow,
        from_arrow_refs,
        from_items,
        from_numpy,
        from_numpy_refs,
        from_pandas,
        from_pandas_refs,
        from_torch,
        range,
        range_tensor,
        read_binary_files,
        read_csv,
        read_datasource,
        read_images,
        read_json,
        read_numpy,
        read_orc,
        read_parquet,
        read_sql,
        read_text,
    )  # fmt: skip

__version__ = "0.1.0"

_EXPORTS = {
    "_io.writing": ("SaveMode",),
    "compute": ("ActorPoolStrategy", "TaskPoolStrategy"),
    "context": ("DataContext", "ExecutionOptions", "ExecutionResources"),
    "dataset": ("Dataset", "MaterializedDataset", "Schema"),
    "datasource": ("Datasink", "Datasource", "ReadTask"),
    "grouped_data": ("GroupedData",),
    "iterator": ("DataIterator",),
    "preprocessors": ("Preprocessor",),
    "read_api": (
        "from_arrow", "from_arrow_refs", "from_items", "from_numpy", "from_numpy_refs", "from_pandas", "from_pandas_refs", "from_torch",
        "range", "range_tensor", "read_binary_files", "read_csv", "read_datasource", "read_images", "read_json", "read_numpy", "read_orc", "read_parquet",
        "read_sql", "read_text",
    ),
}  # fmt: skip
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}
_SUBMODULES = ("aggregate", "context", "datasource", "exceptions", "expressions", "preprocessors")

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> object:
    from importlib import import_module

    home = _HOME.get(name)
    if home is not None:
        value: object = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_SUBMODULES})
