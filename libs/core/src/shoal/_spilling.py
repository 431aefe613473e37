"""Where the object store spills to, as users and Ray's settings say it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any


def places(given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """Directories become absolute; URIs of remote file systems stay as they are.

    >>> places("s3://bucket/spilled"), places(["/a", "/b/../c"])
    (['s3://bucket/spilled'], ['/a', '/c'])
    """
    several = [given] if isinstance(given, str | os.PathLike) else given
    return [text if "://" in (text := os.fspath(place)) else os.path.abspath(text) for place in several]


def of_ray(config: str | Mapping[str, Any]) -> list[str]:
    """The places of Ray's `object_spilling_config`, JSON or what JSON says. Raises ValueError.

    >>> of_ray('{"type": "smart_open", "params": {"uri": "s3://bucket/spilled"}}')
    ['s3://bucket/spilled']
    """
    try:
        told = json.loads(config) if isinstance(config, str) else config
        params = told["params"]
        return places({"filesystem": lambda: params["directory_path"], "smart_open": lambda: params["uri"]}[told["type"]]())
    except (ValueError, KeyError, TypeError) as error:
        wanted = '{"type": "filesystem", "params": {"directory_path": "/a"}} or {"type": "smart_open", "params": {"uri": "s3://bucket/folder"}}'
        raise ValueError(f"object_spilling_config={config!r}: wanted is {wanted}") from error


def with_places(system_config: Mapping[str, Any], named: Sequence[str | os.PathLike[str]] = ()) -> dict[str, Any]:
    """Settings by service, from those that may have Ray's `object_spilling_directory` and `object_spilling_config` in them. `named` outside of them counts
    first. Raises ValueError."""
    settings = dict(system_config)
    directory, config = settings.pop("object_spilling_directory", None), settings.pop("object_spilling_config", None)
    chosen = places(named) or (places(directory) if directory else of_ray(config) if config else [])
    if chosen:
        settings["objectstore"] = {**settings.get("objectstore", {}), "spill_dirs": chosen}
    return settings
