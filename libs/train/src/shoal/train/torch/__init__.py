"""Training with PyTorch: process groups, models and data loaders on many workers.

Importing this imports PyTorch only when something that needs it is used.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:  # type checkers see the names; nothing is imported at run time before it is used
    from .config import TorchConfig
    from .devices import get_device, get_devices
    from .loader import prepare_data_loader
    from .model import prepare_model
    from .reproducible import enable_reproducibility
    from .trainer import TorchTrainer

_HOME = {
    "TorchConfig": "config", "TorchTrainer": "trainer", "enable_reproducibility": "reproducible", "get_device": "devices", "get_devices": "devices",
    "prepare_data_loader": "loader", "prepare_model": "model",
}  # fmt: skip

__all__ = ["TorchConfig", "TorchTrainer", "enable_reproducibility", "get_device", "get_devices", "prepare_data_loader", "prepare_model"]


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
