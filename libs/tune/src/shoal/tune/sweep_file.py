"""Sweeps as YAML files: what `shoal tune run` reads. Every mistake is told with the file, the line, the key and the nearest key that is known.

::

    trainable: train_digits.py:train       # a file beside this one, module:function, or a name such as PPO
    metric: accuracy
    mode: max
    num_samples: 20
    space:
      lr: {type: loguniform, lower: 1e-4, upper: 1e-1}
      layers: {type: grid_search, values: [1, 2]}
      batch: 64                             # a constant
    scheduler: {type: asha, max_t: 20, grace_period: 2}
    search: {type: optuna, seed: 1}
    resources: {cpu: 1}
    storage: results                        # relative to this file
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.util.yaml_config import YamlConfig, YamlConfigError, load, nearest

from .function_trainable import check_trainable
from .registry import get_trainable
from .resources import clean, with_resources
from .run_config import CheckpointConfig, FailureConfig, RunConfig
from .schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler, MedianStoppingRule, PopulationBasedTraining
from .search import BasicVariantGenerator
from .search import sample as domains
from .tune_config import TuneConfig

__all__ = ["Sweep", "load_sweep"]

Place = tuple[str | int, ...]
KEYS = {
    "trainable", "name", "metric", "mode", "num_samples", "space", "scheduler", "search", "resources", "storage", "stop", "max_failures", "fail_fast",
    "max_concurrent_trials", "time_budget_s", "reuse_actors", "checkpoint",
}  # fmt: skip
_DOMAINS: dict[str, Callable[..., Any]] = {
    name: getattr(domains, name)
    for name in ("uniform", "quniform", "loguniform", "qloguniform", "randint", "qrandint", "lograndint", "qlograndint", "randn", "qrandn")
}
_VALUES: dict[str, Callable[..., Any]] = {"choice": domains.choice, "grid_search": domains.grid_search}
_SCHEDULERS: dict[str, type] = {
    "fifo": FIFOScheduler, "asha": ASHAScheduler, "hyperband": HyperBandScheduler, "median_stopping": MedianStoppingRule, "pbt": PopulationBasedTraining,
}  # fmt: skip
_NOT_IN_YAML = {"metric", "mode", "custom_explore_fn", "sampler", "storage", "space", "random_state"}


@dataclass
class Sweep:
    """A file that was read and checked.

    Attributes:
        trainable, space, tune_config, run_config: for `Tuner`.
        base: the folder that paths in the file are relative to.
        text: of the file.
    """

    trainable: Any
    space: dict[str, Any]
    tune_config: TuneConfig
    run_config: RunConfig
    base: Path
    text: str


def load_sweep(path: str | Path, base: Path | None = None) -> Sweep:
    """Reads a file. `base`: what its paths are relative to; default: its own folder.

    Raises:
        YamlConfigError: naming file, line and key.
        OSError: the file cannot be read.
    """
    path = Path(path)
    base = (base or path.parent).absolute()
    config = load(path)
    config.check_keys((), KEYS, required={"trainable"})
    trainable = _trainable(config, base)
    given = config.value(("resources",), dict, {})
    if given:
        trainable = with_resources(trainable, _checked(config, ("resources",), lambda: clean(given)))
    space = {str(key): _parameter(config, ("space", key), value) for key, value in config.value(("space",), dict, {}).items()}
    tune_config = _checked(config, (), lambda: TuneConfig(
        metric=config.value(("metric",), str, "") or None, mode=_one_of(config, ("mode",), ("min", "max")), num_samples=config.value(("num_samples",), int, 1),
        max_concurrent_trials=config.value(("max_concurrent_trials",), int, 0) or None, time_budget_s=_number(config, ("time_budget_s",), None),
        reuse_actors=config.value(("reuse_actors",), bool, False), search_alg=_search(config), scheduler=_scheduler(config),
    ))  # fmt: skip
    return Sweep(trainable, space, tune_config, _run_config(config, base), base, path.read_text(encoding="utf-8"))


def _run_config(config: YamlConfig, base: Path) -> RunConfig:
    storage = config.value(("storage",), str, "")
    checkpoint_keys = set(inspect.signature(CheckpointConfig).parameters)
    config.check_keys(("checkpoint",), checkpoint_keys)
    checkpoint = config.value(("checkpoint",), dict, {})
    stop = config.value(("stop",), dict, {})
    for key in stop:
        _number(config, ("stop", key), None)
    return RunConfig(
        name=config.value(("name",), str, "") or None, storage_path=str(base / Path(storage).expanduser()) if storage else None,
        checkpoint_config=_checked(config, ("checkpoint",), lambda: CheckpointConfig(**checkpoint)),
        failure_config=_checked(config, ("max_failures",), lambda: FailureConfig(
            max_failures=config.value(("max_failures",), int, 0), fail_fast=config.value(("fail_fast",), bool, False)
        )),
        stop={str(key): _number(config, ("stop", key), None) or 0.0 for key in stop} or None,
    )  # fmt: skip


def _checked(config: YamlConfig, place: Place, make: Callable[[], Any]) -> Any:
    """What `make` gives; its complaint with the line."""
    try:
        return make()
    except YamlConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise config.error(place, str(error)) from error


def _one_of(config: YamlConfig, place: Place, known: tuple[str, ...]) -> str | None:
    found = config.value(place, str, "")
    if found and found not in known:
        like = nearest(found, known)
        raise config.error(place, f"{found!r}: " + (f"did you mean {like!r}?" if like else f"one of {', '.join(known)} is wanted"))
    return found or None


def _number(config: YamlConfig, place: Place, default: float | None) -> float | None:
    """YAML takes 1e-4 for text, people for a number."""
    found: Any = config.data
    for step in place:
        if isinstance(found, list) and isinstance(step, int):
            found = found[step]
        else:
            found = found.get(step) if isinstance(found, dict) else None
    if found is None:
        return default
    if isinstance(found, str):
        try:
            return float(found)
        except ValueError:
            pass
    value = config.value(place, float)
    return found if isinstance(found, int) else value


# -- the trainable -----------------------------------------------------------------------------------------------------


def _trainable(config: YamlConfig, base: Path) -> Any:
    place: Place = ("trainable",)
    text = config.value(place, str)
    where, colon, name = text.rpartition(":")
    if not colon:
        try:
            return get_trainable(text)
        except (ValueError, ImportError) as error:
            raise config.error(place, f"{text!r}: FILE.py:FUNCTION or MODULE:FUNCTION is wanted, or a name; but {error}") from error
    if not where or not name:
        raise config.error(place, f"{text!r}: FILE.py:FUNCTION or MODULE:FUNCTION is wanted")
    module = _file_module(config, place, base / where) if where.endswith(".py") else _module(config, place, base, where)
    if not hasattr(module, name):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        like = nearest(name, known)
        hint = f"did you mean {like!r}?" if like else f"there are {', '.join(sorted(known)) or 'no functions'}"
        raise config.error(place, f"{where} has no {name!r}; {hint}")
    trainable = getattr(module, name)
    _checked(config, place, lambda: check_trainable(trainable))
    return trainable


def _file_module(config: YamlConfig, place: Place, path: Path) -> Any:
    if not path.is_file():
        raise config.error(place, f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise config.error(place, f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    # Its neighbours can be imported by it, as when it is run itself; dataclasses want to find their module.
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    sys.modules[path.stem] = module
    _import(config, place, lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    _by_value(module)
    return module


def _module(config: YamlConfig, place: Place, base: Path, name: str) -> Any:
    if str(base) not in sys.path:
        sys.path.insert(0, str(base))
    module = _import(config, place, lambda: importlib.import_module(name))
    file = getattr(module, "__file__", None)
    if file and Path(file).is_relative_to(base):
        _by_value(module)
    return module


def _import(config: YamlConfig, place: Place, do: Callable[[], Any]) -> Any:
    try:
        return do()
    except Exception as error:
        raise config.error(place, f"cannot be imported: {type(error).__name__}: {error}") from error


def _by_value(module: Any) -> None:
    """Workers cannot import what lies beside the YAML file: it travels with the trainable."""
    import cloudpickle

    cloudpickle.register_pickle_by_value(module)


# -- the space ---------------------------------------------------------------------------------------------------------


def _parameter(config: YamlConfig, place: Place, value: Any) -> Any:
    if isinstance(value, list):
        return [_parameter(config, (*place, index), inner) for index, inner in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    if "type" not in value:
        return {key: _parameter(config, (*place, key), inner) for key, inner in value.items()}
    kind = config.value((*place, "type"), str)
    if kind == "constant":
        config.check_keys(place, {"type", "value"}, required={"value"})
        return value["value"]
    if kind in _VALUES:
        config.check_keys(place, {"type", "values"}, required={"values"})
        listed = config.value((*place, "values"), list)
        values = [_parameter(config, (*place, "values", index), inner) for index, inner in enumerate(listed)]
        return _checked(config, place, lambda: _VALUES[kind](values))
    if kind not in _DOMAINS:
        known = [*_DOMAINS, *_VALUES, "constant"]
        like = nearest(kind, known)
        hint = f"did you mean {like!r}?" if like else f"known are {', '.join(known)}"
        raise config.error((*place, "type"), f"unknown type {kind!r}; {hint}")
    make = _DOMAINS[kind]
    parameters = inspect.signature(make).parameters
    required = {name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
    config.check_keys(place, {"type", *parameters}, required)
    arguments = {name: _number(config, (*place, name), None) for name in value if name != "type"}
    return _checked(config, place, lambda: make(**arguments))


# -- scheduler and search ----------------------------------------------------------------------------------------------


def _typed(config: YamlConfig, key: str, known: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """`asha`, or a mapping with `type: asha` and its arguments."""
    found = config.data.get(key)
    if found is None:
        return None
    place: Place = (key,) if isinstance(found, str) else (key, "type")
    kind = _one_of(config, place, tuple(known))
    if kind is None:
        raise config.error(place, "is missing")
    return kind, {} if isinstance(found, str) else {name: value for name, value in found.items() if name != "type"}


def _arguments(config: YamlConfig, key: str, made: Any, given: dict[str, Any]) -> dict[str, Any]:
    known = set(inspect.signature(made).parameters) - _NOT_IN_YAML
    if given:
        config.check_keys((key,), {"type", *known})
    arguments: dict[str, Any] = {}
    for name, value in given.items():
        place: Place = (key, name)
        if name == "hyperparam_mutations":
            arguments[name] = {str(one): _mutation(config, (*place, one), inner) for one, inner in config.value(place, dict).items()}
        elif isinstance(value, str) and name != "time_attr" and name != "study_name":
            arguments[name] = _number(config, place, None)
        else:
            arguments[name] = value
    return arguments


def _mutation(config: YamlConfig, place: Place, value: Any) -> Any:
    found = _parameter(config, place, value)
    return found[domains.GRID] if isinstance(found, dict) and domains.GRID in found else found


def _scheduler(config: YamlConfig) -> Any:
    chosen = _typed(config, "scheduler", _SCHEDULERS)
    if chosen is None:
        return None
    kind, given = chosen
    arguments = _arguments(config, "scheduler", _SCHEDULERS[kind], given)
    return _checked(config, ("scheduler",), lambda: _SCHEDULERS[kind](**arguments))


def _search(config: YamlConfig) -> Any:
    chosen = _typed(config, "search", {"random": 0, "grid": 0, "optuna": 0})
    if chosen is None:
        return None
    kind, given = chosen
    if kind == "optuna":
        from .search.optuna import OptunaSearch

        arguments = _arguments(config, "search", OptunaSearch, given)
        return _checked(config, ("search",), lambda: OptunaSearch(**arguments))
    seed = given.pop("seed", None)
    if given:
        config.check_keys(("search",), {"type", "seed", *(set(inspect.signature(BasicVariantGenerator).parameters) - _NOT_IN_YAML)})
    return _checked(config, ("search",), lambda: BasicVariantGenerator(random_state=seed, **given))
