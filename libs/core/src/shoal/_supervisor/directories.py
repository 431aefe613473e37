"""Where a node's files lie, which of them belong to the living, and how to find this user's running nodes.

    <base>/             $SHOAL_TMPDIR or /tmp/shoal-UID
        n-<12 hex>/     one node: node.json, sockets, logs. node.json stays flock-ed by the living supervisor
        c-<12 hex>/     one supervisor: secrets, the GCS's database, its own log. `lock` stays flock-ed

A directory whose lock is free belongs to nobody any more, and whoever comes next removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import asdict

NODE_FILE = "node.json"
LOCK_FILE = "lock"
ELSEWHERE_FILE = "elsewhere"
CGROUP_FILE = "cgroup"
# The longest name below a node's directory is w/<32 hex>.sock, and a Unix socket's path has at most 107 bytes.
_SOCKET_TAIL = len("/n-0123456789ab/w/") + 32 + len(".sock")
MAX_BASE_BYTES = 107 - _SOCKET_TAIL
# A directory without its lock file may be one that is just being made.
_UNFINISHED_S = 60.0
# Limit: a node.json larger than this is not ours.
_NODE_FILE_BYTES = 1 << 16
# How long a control group's last process may take to go.
_CGROUP_TRIES, _CGROUP_PAUSE_S = 50, 0.02
# How long a node's end waits until a remote file system has forgotten what was spilled there.
FAR_WAIT_S = 6.0
# How often a folder is made anew that others remove.
_MAKE_TRIES = 100


class DirectoryError(RuntimeError):
    """The directory for Shoal's files cannot be used."""


def base_directory(temp_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder of all this user's nodes on this host; made when it is missing. Raises DirectoryError when others could write there."""
    chosen = os.fspath(temp_dir) if temp_dir else os.environ.get("SHOAL_TMPDIR") or f"/tmp/shoal-{os.getuid()}"
    base = Path(os.path.abspath(chosen))
    if len(os.fsencode(base)) > MAX_BASE_BYTES:
        length = len(os.fsencode(base))
        raise DirectoryError(f"{base} has {length} bytes, more than the {MAX_BASE_BYTES} that leave room for Unix sockets: choose a shorter SHOAL_TMPDIR")
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = base.lstat()
    except OSError as error:
        raise DirectoryError(f"{base} cannot be made: {error.strerror or error}; choose another place with --temp-dir or SHOAL_TMPDIR") from error
    if not stat.S_ISDIR(found.st_mode):
        raise DirectoryError(f"{base} is no directory; choose another place with --temp-dir or SHOAL_TMPDIR")
    if found.st_uid != os.getuid():
        raise DirectoryError(f"{base} belongs to uid {found.st_uid}, not to uid {os.getuid()}; choose another place with --temp-dir or SHOAL_TMPDIR")
    if found.st_mode & 0o022:
        mode = f"{stat.S_IMODE(found.st_mode):o}"
        raise DirectoryError(f"{base} can be written by others (mode {mode}); run `chmod go-w {base}` or choose another place with SHOAL_TMPDIR")
    return base


class NodeFile(msgspec.Struct):
    """The contents of node.json: what a driver needs to attach to this node."""

    node_id: str
    node_dir: str
    cluster_dir: str
    gcs_address: str
    http_address: str
    node_address: str
    supervisor_pid: int
    head: bool
    private: bool
    owner_pid: int = 0
    node_name: str = ""
    started_ms: int = 0
    version: str = ""
    secrets_dir: str = ""
    resources: dict[str, int] = msgspec.field(default_factory=dict)

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> NodeFile:
        """Raises ValueError when it is none. Unknown keys, by a newer version, are ignored."""
        try:
            raw: Any = json.loads(text)
            known = set(cls.__struct_fields__)
            return cls(**{key: value for key, value in raw.items() if key in known})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"no node.json of Shoal: {error}") from error


class HeldFile:
    """A file that this process keeps flock-ed until `release` or its death."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.fd = -1
        self.write(text)

    def write(self, text: str) -> None:
        """Replaces the contents. A reader sees the old file or the new one, always whole and always locked."""
        temporary = self.path.with_suffix(f".{os.getpid()}")
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, text.encode())
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(temporary, self.path)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        self.release()
        self.fd = fd

    def release(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def is_held(path: Path) -> bool:
    """Whether a living process keeps this file locked."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Shared: two readers at once must not take each other for the owner.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def make_directory(base: Path, prefix: str, name: str) -> Path:
    directory = base / f"{prefix}-{name}"
    for _ in range(_MAKE_TRIES):
        # Another program's last node may take the empty default folder away just now.
        with contextlib.suppress(FileNotFoundError):
            base.mkdir(mode=0o700, exist_ok=True)
            directory.mkdir(mode=0o700)
            return directory
    raise DirectoryError(f"{base} was removed {_MAKE_TRIES} times while {directory.name} was made in it; choose another place with SHOAL_TMPDIR")


def read_node(directory: Path) -> NodeFile | None:
    """The node of this directory, if it is alive."""
    path = directory / NODE_FILE
    if not is_held(path):
        return None
    try:
        with open(path, "rb") as file:
            return NodeFile.from_json(file.read(_NODE_FILE_BYTES))
    except (OSError, ValueError):
        return None  # it ended meanwhile, or is another version's


def living_nodes(base: Path) -> list[NodeFile]:
    """This user's living nodes on this host: heads first, then the newest."""
    try:
        found = [read_node(entry) for entry in base.glob("n-*")]
    except OSError:
        return []
    nodes = [node for node in found if node is not None]
    return sorted(nodes, key=lambda node: (not node.head, -node.started_ms))


def abandoned(base: Path) -> Iterator[Path]:
    """Directories of the dead."""
    for prefix, lock in (("n", NODE_FILE), ("c", LOCK_FILE)):
        for directory in base.glob(f"{prefix}-*"):
            path = directory / lock
            if is_held(path):
                continue
            with contextlib.suppress(OSError):
                if path.exists() or time.time() - directory.stat().st_mtime > _UNFINISHED_S:
                    yield directory


def sweep(base: Path) -> None:
    """Removes what the dead left behind."""
    for directory in abandoned(base):
        remove(directory, far_wait_s=0.0)
    remove_if_empty(base)


def remove(directory: Path, far_wait_s: float = FAR_WAIT_S) -> None:
    """A node's or a supervisor's directory, and what a node keeps elsewhere (`elsewhere` names it, a path a line: spilled objects on other disks; or a URI,
    a tab and a name: a folder in a remote file system, which this waits for, `far_wait_s` at most. `cgroup` names its control group)."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        lines = (directory / ELSEWHERE_FILE).read_text().splitlines()
        far = [(uri, name) for uri, tab, name in (line.partition("\t") for line in lines) if tab and name.startswith("shoal-")]
        if far:
            from shoal_objectstore.remote import remove_folders

            remove_folders(far, far_wait_s)
        for line in lines:
            path = Path(line)
            if path.is_absolute() and path.name.startswith("shoal-") and path.lstat().st_uid == os.getuid():
                shutil.rmtree(path, ignore_errors=True)
    _remove_cgroup(directory / CGROUP_FILE)
    shutil.rmtree(directory, ignore_errors=True)


def _remove_cgroup(file: Path) -> None:
    """The control group of a raylet that could not remove it itself: empty once its workers have gone, which died with the raylet."""
    try:
        group = Path(file.read_text().strip())
        below = [entry for entry in group.iterdir() if entry.is_dir()]
    except (OSError, UnicodeDecodeError):
        return
    if not group.name.startswith("shoal-") or not (group / "cgroup.procs").exists():
        return
    for directory in (*below, group):
        for _ in range(_CGROUP_TRIES):
            try:
                directory.rmdir()
                break
            except FileNotFoundError:
                break
            except OSError:  # busy: a process of it is not gone yet
                time.sleep(_CGROUP_PAUSE_S)


def remove_if_empty(base: Path) -> None:
    # The default folder goes with its last node; one that the user named stays.
    if str(base) == f"/tmp/shoal-{os.getuid()}":
        with contextlib.suppress(OSError):
            base.rmdir()
