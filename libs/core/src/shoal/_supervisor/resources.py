"""What this machine offers: CPUs, memory, GPUs, room for objects."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from shoal_base.processes import available_cpus, available_memory
from shoal_base.resources import Resources, to_units

# The arena's share of the memory that this process may use, and its ceiling: beyond it more room only costs page tables.
STORE_SHARE = 0.3
STORE_CEILING_BYTES = 200 << 30
STORE_FLOOR_BYTES = 64 << 20
# Memory for tasks: what the arena leaves, less a reserve for the services and the system.
_RESERVE_SHARE = 0.1
_RESERVED_NAMES = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory", "object_store_memory": "object_store_memory"}
_MODEL = re.compile(r"Model:\s*(.+)")


def visible_gpus() -> list[str] | None:
    """The devices that CUDA_VISIBLE_DEVICES leaves to this process: they may be others' beyond it. None: all."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None
    named = [name.strip() for name in visible.split(",") if name.strip()]
    return [] if not named or named[0] in ("-1", "NoDevFiles", "none") else named


def count_gpus() -> int:
    """NVIDIA GPUs that this process may use; 0 without a driver."""
    visible = visible_gpus()
    if visible is not None:
        return len(visible)
    # /dev first: a container sees only its own devices there, while /proc may list the host's.
    devices = [name for name in _names("/dev") if re.fullmatch(r"nvidia\d+", name)]
    return len(devices) or len(_names("/proc/driver/nvidia/gpus"))


def accelerator_type() -> str:
    """The GPUs' model in one word, as Ray names it ("H200", "A100"), or ""."""
    for name in _names("/proc/driver/nvidia/gpus"):
        try:
            text = Path("/proc/driver/nvidia/gpus", name, "information").read_text()
        except OSError:
            continue
        if found := _MODEL.search(text):
            return short_model(found.group(1))
    return ""


def short_model(model: str) -> str:
    """
    >>> short_model("NVIDIA H200"), short_model("Tesla V100-SXM2-16GB"), short_model("NVIDIA A100-SXM4-80GB")
    ('H200', 'V100', 'A100')
    """
    words = [word for word in re.split(r"[\s-]+", model.strip()) if word.upper() not in ("NVIDIA", "TESLA", "GEFORCE", "QUADRO")]
    return words[0] if words else ""


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def store_bytes(wanted: int | None) -> int:
    """The arena's size. Raises ValueError for what is too small to be of use or more than there is."""
    memory = available_memory()
    if wanted is None:
        return max(STORE_FLOOR_BYTES, min(int(memory * STORE_SHARE), STORE_CEILING_BYTES))
    if wanted < STORE_FLOOR_BYTES:
        raise ValueError(f"object_store_memory={wanted}: at least {STORE_FLOOR_BYTES} bytes (64 MiB) are needed")
    if wanted > memory:
        raise ValueError(f"object_store_memory={wanted}: this machine lets the process use {memory} bytes; choose less")
    return wanted


def _known(amount: float | None, name: str, detected: float) -> int:
    return to_units(detected if amount is None else amount, name)


def node_resources(
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    memory: int | None = None,
    object_store_bytes: int = 0,
    custom: Mapping[str, float] | None = None,
    host: str = "127.0.0.1",
    head: bool = False,
) -> Resources:
    """The node's totals in 1/10,000. What is None is detected. Raises ValueError naming the resource that cannot be."""
    for name in custom or {}:
        if name in _RESERVED_NAMES:
            raise ValueError(f"resources[{name!r}]: use {_RESERVED_NAMES[name]}= instead")
    visible = visible_gpus()
    if visible is not None and (num_gpus or 0) > len(visible):
        raise ValueError(f"num_gpus={num_gpus:g}: CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r} leaves {len(visible)} of them to this node")
    free = max(0, int(available_memory() * (1 - _RESERVE_SHARE)) - object_store_bytes)
    totals = {
        "CPU": _known(num_cpus, "num_cpus", available_cpus()),
        "GPU": _known(num_gpus, "num_gpus", count_gpus()),
        "memory": _known(memory, "memory", free),
        "object_store_memory": to_units(object_store_bytes, "object_store_memory"),
        f"node:{host}": to_units(1),
    }
    if head:
        totals["node:__internal_head__"] = to_units(1)
    if totals["GPU"] and (model := accelerator_type()):
        totals[f"accelerator_type:{model}"] = to_units(1)
    for name, amount in (custom or {}).items():
        if not name or not isinstance(name, str):
            raise ValueError(f"resources: a name is wanted, got {name!r}")
        totals[name] = to_units(float(amount), f"resources[{name!r}]")
    return {name: units for name, units in totals.items() if units}


def node_labels(user: Mapping[str, str] | None, node_id: str, node_name: str) -> dict[str, str]:
    """The node's labels: the user's and those that every node carries."""
    labels = {"shoal.io/node-id": node_id}
    if node_name:
        labels["shoal.io/node-name"] = node_name
    if count_gpus() and (model := accelerator_type()):
        labels["shoal.io/accelerator-type"] = model
    for key, value in (user or {}).items():
        if not isinstance(key, str) or not isinstance(value, str) or not key:
            raise ValueError(f"labels: text to text is wanted, got {key!r}: {value!r}")
        if key.startswith("shoal.io/") and key in labels:
            raise ValueError(f"labels[{key!r}] is set by the node itself; choose another key")
        labels[key] = value
    return labels
