"""What a store is told when it starts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from .remote import is_remote


class Config(msgspec.Struct, frozen=True):
    node_dir: Path
    node_id: bytes
    secrets_dir: Path
    raylet_sock: Path | None = None  # default: node_dir/raylet.sock
    ready_fd: int = -1
    warm_bytes: int = -1  # free pages kept resident; -1: a quarter of the capacity, at most 260 MiB and an eighth of what the machine has left
    full_wait_s: float = 30.0  # how long a request for space waits before it is refused
    owner_grace_s: float = 5.0  # how long objects of a dead owner stay, so that borrowers can pin what they go on with
    spill: bool = True  # cold objects go to disk when room lacks
    spill_dirs: Sequence[str | Path] = ()  # directories, and URIs of remote file systems for what no directory takes; empty: a folder of node_dir
    spill_local_bytes: int = 0  # what directories may take together when there is a remote place, too; 0: all but a twentieth of their file systems
    spill_threshold: float = 0.8  # from this part of the capacity on, cold objects are written to disk ahead of need
    log_level: str = "INFO"
    log_encoding: Literal["TEXT", "JSON"] = "TEXT"

    def __post_init__(self) -> None:
        if not 0.0 <= self.spill_threshold <= 1.0:
            raise ValueError(f"spill_threshold={self.spill_threshold}: a part of the capacity is wanted, from 0 to 1")
        if self.spill_local_bytes and not any(is_remote(place) for place in self.spill_dirs):
            raise ValueError(f"spill_local_bytes={self.spill_local_bytes}: it is for stores that have a remote place, too; name its URI in spill_dirs")
        wrong = [str(place) for place in self.spill_dirs if "://" in str(place) and not is_remote(place)]
        if wrong:
            raise ValueError(f"spill_dirs: {wrong[0]!r} is no URI: spaces are written as %20")

    @property
    def raylet_path(self) -> Path:
        return self.raylet_sock or self.node_dir / "raylet.sock"


def _node_id(text: str) -> bytes:
    value = bytes.fromhex(text)
    if len(value) != 16:
        raise argparse.ArgumentTypeError(f"{text!r}: 32 hex digits are wanted")
    return value


def parse(argv: Sequence[str] | None = None) -> Config:
    parser = argparse.ArgumentParser(
        prog="python -m shoal_objectstore", description="The node's object store: lends the arena's space to its clients, moves objects between nodes."
    )
    parser.add_argument("--node-dir", type=Path, required=True, help="the node's directory: sockets and logs")
    parser.add_argument("--node-id", type=_node_id, required=True, metavar="HEX", help="32 hex digits")
    parser.add_argument("--secrets-dir", type=Path, required=True, help="where node.secret lies")
    parser.add_argument("--raylet-sock", type=Path, default=None, help="the raylet's socket, from which the arena comes; default: NODE_DIR/raylet.sock")
    parser.add_argument("--ready-fd", type=int, default=-1, help="one JSON line is written here when the store serves")
    parser.add_argument(
        "--warm-bytes", type=int, default=-1,
        help="free pages kept resident; -1: a quarter of the capacity, at most 260 MiB, and an eighth of what the machine has left",
    )  # fmt: skip
    parser.add_argument("--full-wait-s", type=float, default=30.0, help="how long a request for space waits before it is refused")
    parser.add_argument("--owner-grace-s", type=float, default=5.0, help="how long objects of a dead owner stay, for borrowers to pin")
    parser.add_argument("--no-spill", dest="spill", action="store_false", help="nothing goes to disk: what lacks room waits, and is refused")
    parser.add_argument(
        "--spill-dir", dest="spill_dirs", action="append", default=[], metavar="DIR|URI",
        help="where cold objects go when room lacks; may be given several times, best on different disks; a URI (s3://bucket/folder) gets what no directory "
        "takes; default: NODE_DIR/spill",
    )  # fmt: skip
    parser.add_argument("--spill-local-bytes", type=int, default=0, help="what directories may take before a URI does; default: 95 %% of their disk")
    parser.add_argument("--spill-threshold", type=float, default=0.8, help="from this part of the capacity on, cold objects are written ahead of need")
    parser.add_argument("--log-level", default="INFO")
    parser.add_argument("--log-encoding", default="TEXT", choices=["TEXT", "JSON"])
    return Config(**vars(parser.parse_args(argv)))
