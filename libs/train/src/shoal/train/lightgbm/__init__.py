"""Gradient boosted trees by LightGBM, on many workers that each hold a part of the rows.

Importing this imports LightGBM only when something that needs it is used.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:  # type checkers see the names; nothing is imported at run time before it is used
    from .callback import RayTrainReportCallback
    from .config import LightGBMConfig, get_network_params
    from .trainer import LightGBMTrainer

_HOME = {"LightGBMConfig": "config", "LightGBMTrainer": "trainer", "RayTrainReportCallback": "callback", "get_network_params": "config"}

__all__ = ["LightGBMConfig", "LightGBMTrainer", "RayTrainReportCallback", "get_network_params"]


def __getattr__(name: str) -> object:
    from importlib import import_module

    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
