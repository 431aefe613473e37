"""The alias of the module tree."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path
from types import ModuleType
from typing import Any

RAY_VERSION = "2.60.0"
# The key of a job's metadata under which its workers find out that the driver has installed the alias.
JOB_METADATA = "compat.ray"
_RENAMED = {"ray.rllib": "shoal.rl"}
_NAMES = "shoal.compat.ray.names"


class RayIsInstalled(ImportError):
    """`ray` already means the real one here; it is not shadowed unless that is asked for."""


def install(*, shadow: bool = False) -> None:
    """From now on `import ray` imports Shoal, in this process and in the workers of its jobs. Idempotent.

    Args:
        shadow: also where Ray itself is installed.

    Raises:
        RayIsInstalled: without `shadow`, when Ray can be imported; always when it was imported already.
    """
    if is_installed():
        return
    if "ray" in sys.modules:
        raise RayIsInstalled("ray was imported already and cannot be replaced in this process: call shoal.compat.ray.install() before the first `import ray`")
    real = None if shadow else importlib.util.find_spec("ray")
    if real is not None:
        raise RayIsInstalled(
            f"Ray itself is installed ({real.origin or 'a namespace package'}): `import ray` would silently mean another thing. "
            "Uninstall it, or say install(shadow=True), or --shadow on the command line."
        )
    if address := os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("SHOAL_ADDRESS", address)
    sys.meta_path.insert(0, _Finder())


def is_installed() -> bool:
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def target_of(name: str) -> str:
    """
    >>> target_of("ray.util.queue"), target_of("ray.rllib.algorithms.ppo"), target_of("ray")
    ('shoal.util.queue', 'shoal.rl.algorithms.ppo', 'shoal')
    """
    for old, new in _RENAMED.items():
        if name == old or name.startswith(old + "."):
            return new + name[len(old) :]
    return "shoal" + name[len("ray") :]


def _exists(module: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None


class _Root(ModuleType):
    """`ray`: a module of its own, because its version is another than Shoal's."""

    __version__ = RAY_VERSION
    __commit__ = "shoal"

    def __getattr__(self, name: str) -> Any:
        import shoal

        if f"ray.{name}" in _RENAMED:
            return importlib.import_module(f"ray.{name}")
        if name == "logger":
            return logging.getLogger("shoal")
        try:
            return getattr(shoal, name)
        except AttributeError:
            if _exists(f"{_NAMES}.{name}"):
                return importlib.import_module(f"ray.{name}")
            raise AttributeError(f"module 'ray' has no attribute {name!r}: Shoal, which stands in for it, has none either") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, ("ray",)  # cloudpickle knows only plain modules

    def __dir__(self) -> list[str]:
        import shoal

        return sorted({*dir(shoal), *super().__dir__()})


class _SameModule(Loader):
    """The module that another name has imported."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._target)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has just written the alias's spec into it; relative imports inside it go by its own.
        module.__spec__ = self._spec


class _RootLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Root(spec.name, "Shoal under the name of Ray; see shoal.compat.ray.")

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Metadata(Distribution):
    """What version queries find."""

    def read_text(self, filename: str) -> str | None:
        return f"Metadata-Version: 2.1\nName: ray\nVersion: {RAY_VERSION}\nSummary: Shoal under the name of Ray\n" if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        return Path(path)


class _Finder(DistributionFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname == "ray":
            return ModuleSpec(fullname, _RootLoader(), is_package=True)
        if not fullname.startswith("ray."):
            return None
        ours = target_of(fullname)
        found = _exists(ours)
        if found is None:
            ours = _NAMES + fullname[len("ray") :]
            found = _exists(ours)
        if found is None:
            wanted = target_of(fullname)
            raise ModuleNotFoundError(f"No module named {fullname!r}: it would be Shoal's {wanted}, which is not installed or does not exist", name=fullname)
        return ModuleSpec(fullname, _SameModule(ours), is_package=found.submodule_search_locations is not None)

    def find_distributions(self, context: DistributionFinder.Context = DistributionFinder.Context()) -> Iterable[Distribution]:  # noqa: B008 (as in the base class)
        return [_Metadata()] if context.name in ("ray", None) else []
