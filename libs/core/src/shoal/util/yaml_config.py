"""YAML files that people write: plain data, and for every mistake the file, the line, the key and the nearest key that is known.

::

    config = load("sweep.yaml")
    config.check_keys((), known={"metric", "trials"}, required={"metric"})
    config.check_keys(("trials",), known={"max_concurrent"})
    trials = config.value(("trials", "max_concurrent"), int, 4)
    if trials < 1:
        raise config.error(("trials", "max_concurrent"), f"{trials} is less than 1")   # sweep.yaml:3: trials.max_concurrent: 0 is less than 1

PyYAML is imported on first use: it comes with `shoal-core[launcher]`, `shoal-tune` and `shoal-serve`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

if TYPE_CHECKING:
    import yaml

__all__ = ["YamlConfig", "YamlConfigError", "load", "nearest", "parse"]

T = TypeVar("T")
# Keys of mappings and indices of lists, from the top.
Place = tuple[str | int, ...]

# Limit: of a file that a person wrote.
_MAX_BYTES = 4 << 20
# Limit: how deep mappings and lists may lie in each other; PyYAML recurses.
_MAX_DEPTH = 64
_KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping", list: "a list"}


class YamlConfigError(ValueError):
    """What is wrong in a file: `FILE:LINE: KEY: what`. `line` counts from 1; 0 when the file as a whole is meant."""

    def __init__(self, name: str, line: int, place: str, problem: str) -> None:
        self.name, self.line, self.place, self.problem = name, line, place, problem
        super().__init__(": ".join(part for part in (f"{name}:{line}" if line else name, place, problem) if part))

    def __reduce__(self) -> tuple[Any, ...]:
        return YamlConfigError, (self.name, self.line, self.place, self.problem)


class YamlConfig:
    """A document: `data` is made of plain dicts, lists and scalars; everything else answers questions about places in it."""

    def __init__(self, name: str, data: Any, root: yaml.Node | None) -> None:
        self.name = name
        self.data = data
        self._root = root

    def line(self, place: Place = ()) -> int:
        """The line, from 1, of a key or of a list's item; of what holds it when it is not there."""
        node, line = self._root, self._root.start_mark.line + 1 if self._root is not None else 1
        for step in place:
            found = _child(node, step)
            if found is None:
                break
            line, node = found
        return line

    def error(self, place: Place, problem: str) -> YamlConfigError:
        """For the caller to raise."""
        return YamlConfigError(self.name, self.line(place), dotted(place), problem)

    def check_keys(self, place: Place, known: Collection[str], required: Collection[str] = ()) -> None:
        """That there is a mapping with no keys but the known, and all of the required. A missing mapping counts as an empty one. Raises YamlConfigError."""
        found = self.value(place, dict, {})
        for key in found:
            if key not in known:
                like = nearest(str(key), known)
                hint = f"did you mean {like!r}?" if like else f"known here: {', '.join(sorted(known))}"
                raise self.error((*place, key), f"unknown key; {hint}")
        for key in required:
            if found.get(key) is None:
                raise self.error((*place, key), "is missing")

    @overload
    def value(self, place: Place, kind: type[T]) -> T: ...
    @overload
    def value(self, place: Place, kind: type[T], default: T) -> T: ...
    def value(self, place: Place, kind: type[T], default: Any = ...) -> T:
        """What lies there, of this kind: str, int, float, bool, dict or list. Null counts as missing.

        Raises YamlConfigError when it is missing and there is no default, and when it is of another kind."""
        found = self.data
        for step in place:
            try:
                found = found[step]
            except (KeyError, IndexError, TypeError):
                found = None
                break
        if found is None:
            if default is ...:
                raise self.error(place, "is missing")
            return cast(T, default)
        if kind is float and isinstance(found, int) and not isinstance(found, bool):
            return cast(T, float(found))
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            hint = f"; write it in quotes: \"{found}\"" if kind is str and isinstance(found, (int, float, bool)) else ""
            raise self.error(place, f"{_KINDS.get(kind, kind.__name__)} is wanted, not {_shown(found)}{hint}")
        return found


def load(path: str | os.PathLike[str]) -> YamlConfig:
    """The file's only document; an empty file is an empty mapping. Raises YamlConfigError, OSError naming the file, ImportError without PyYAML."""
    name = os.fspath(path)
    if os.path.getsize(name) > _MAX_BYTES:
        raise YamlConfigError(name, 0, "", f"has {os.path.getsize(name)} bytes; at most {_MAX_BYTES} are read")
    try:
        text = Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise YamlConfigError(name, 0, "", f"is no UTF-8: {error.reason} at byte {error.start}") from error
    return parse(text, name)


def parse(text: str, name: str = "<text>") -> YamlConfig:
    """As `load`, from text. `name` stands in errors.

    >>> parse("a: {b: [1, 2]}").value(("a", "b", 1), int)
    2
    >>> parse("trials: 4\\ntirals: 5", "sweep.yaml").check_keys((), {"trials"})
    Traceback (most recent call last):
    ...
    shoal.util.yaml_config.YamlConfigError: sweep.yaml:2: tirals: unknown key; did you mean 'trials'?
    """
    yaml = _yaml()
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return YamlConfig(name, {}, None)
        _check(name, root)
        return YamlConfig(name, loader.construct_document(root), root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.problem, error.context and f"({error.context})") if part)
        raise YamlConfigError(name, mark.line + 1 if mark else 0, "", problem or str(error)) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date like 2024-13-45
        if isinstance(error, YamlConfigError):
            raise
        raise YamlConfigError(name, 0, "", str(error).replace("\n", " ")) from error
    except RecursionError:
        raise YamlConfigError(name, 0, "", f"mappings and lists lie more than {_MAX_DEPTH} deep in each other") from None
    finally:
        loader.dispose()


def nearest(word: str, known: Collection[str]) -> str | None:
    """The known word that this one is probably a slip of.

    >>> nearest("max_workres", ["max_workers", "provider"])
    'max_workers'
    """
    exact = {name.lower().replace("-", "_"): name for name in known}
    simple = word.lower().replace("-", "_")
    found = difflib.get_close_matches(simple, exact, n=1, cutoff=0.6)
    return exact[found[0]] if found else None


def dotted(place: Place) -> str:
    """
    >>> dotted(("provider", "worker_ips", 1))
    'provider.worker_ips[1]'
    """
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return _KINDS[type(value)]
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ImportError("reading YAML takes PyYAML: pip install 'shoal-core[launcher]'", name="yaml") from error
    return yaml


def _children(node: yaml.Node) -> list[tuple[str | int, int, yaml.Node]]:
    """Key or index, line and value of what lies directly in a node."""
    if node.id == "mapping":
        return [(str(key.value), key.start_mark.line + 1, value) for key, value in node.value]
    if node.id == "sequence":
        return [(index, item.start_mark.line + 1, item) for index, item in enumerate(node.value)]
    return []


def _child(node: yaml.Node | None, step: str | int) -> tuple[int, yaml.Node] | None:
    merged: tuple[int, yaml.Node] | None = None
    for key, line, value in _children(node) if node is not None else []:
        if key == step or (isinstance(key, str) and key == str(step)):
            return line, value
        if key == "<<" and merged is None:
            sources = value.value if value.id == "sequence" else [value]
            merged = next((found for source in sources if (found := _child(source, step))), None)
    return merged


def _check(name: str, root: yaml.Node) -> None:
    """No key twice (YAML says it is an error, PyYAML takes the last), no node inside itself."""
    seen: set[int] = set()
    inside: list[tuple[yaml.Node, Place, bool]] = [(root, (), False)]
    path: set[int] = set()
    while inside:
        node, place, leave = inside.pop()
        if leave:
            path.discard(id(node))
            continue
        line = node.start_mark.line + 1
        if id(node) in path:
            raise YamlConfigError(name, line, dotted(place), "holds itself, by an alias")
        if id(node) in seen:  # an alias: looked at once, however often it is named
            continue
        if len(place) > _MAX_DEPTH:
            raise YamlConfigError(name, line, "", f"mappings and lists lie more than {_MAX_DEPTH} deep in each other")
        seen.add(id(node))
        path.add(id(node))
        inside.append((node, place, True))
        first: dict[str | int, int] = {}
        for key, key_line, value in _children(node):
            if key in first and key != "<<":
                raise YamlConfigError(name, key_line, dotted((*place, key)), f"stands twice, first in line {first[key]}")
            first[key] = key_line
            inside.append((value, (*place, key), False))

