"""Network namespaces without names: they go with the last process in them, so that even a killed harness leaves none behind."""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

_CLONE_NEWNET = 0x40000000
_SIOCETHTOOL = 0x8946
# Set to 0: sums of checks left to hardware that is not there, and segments larger than a frame.
_OFFLOADS = (0x17, 0x1F, 0x24)  # ETHTOOL_STXCSUM, ETHTOOL_STSO, ETHTOOL_SGSO
_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """This machine does not let us make networks; the message says what is missing."""


def _own() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def ip(*arguments: str) -> None:
    """iproute2's `ip`, in the calling thread's namespace. Raises Refused with what it says."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        raise Refused(f"`ip {' '.join(arguments)}` says: {done.stderr.strip() or done.returncode}")


class Namespace:
    """A network of its own. Raises Refused."""

    def __init__(self) -> None:
        if shutil.which("ip") is None:
            raise Refused("`ip` is missing (Debian and Ubuntu: apt install iproute2)")
        own = _own()
        try:
            if _libc.unshare(_CLONE_NEWNET) != 0:
                raise Refused(f"the kernel makes no network namespace for this user: {os.strerror(ctypes.get_errno())} (root, or CAP_SYS_ADMIN, is needed)")
            try:
                self.fd = _own()
            finally:
                _setns(own)
        finally:
            os.close(own)
        self._inode = os.fstat(self.fd).st_ino
        with self.entered():
            ip("link", "set", "lo", "up")

    @property
    def path(self) -> str:
        """By which other programs find it."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is inside, and what it opens and starts is so for good."""
        own = _own()
        try:
            _setns(self.fd)
            yield
        finally:
            _setns(own)
            os.close(own)

    def pids(self) -> list[int]:
        """Of all processes inside, but this one."""
        found, wanted = [], f"net:[{self._inode}]"
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if os.readlink(entry / "ns" / "net") == wanted:
                        found.append(int(entry.name))
        return sorted(found)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def whole_frames(name: str) -> None:
    """An interface of the calling thread's namespace sends frames that need nobody's further work: the relay hands them on as they are."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for command in _OFFLOADS:
            value = array.array("B", struct.pack("II", command, 0))
            address, _ = value.buffer_info()
            fcntl.ioctl(sock, _SIOCETHTOOL, struct.pack("16sP", name.encode(), address) + bytes(16))


# -- places that a machine does not see ---------------------------------------------------------------

_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_REC, _MS_SLAVE = 1, 0x4000, 1 << 19
T = TypeVar("T")


def apart(hidden: list[Path], work: Callable[[], T]) -> T:
    """Does the work on a thread that sees empty folders in the place of these; what it starts sees them so for good.

    Machines share one file system here, and nodes of one host find each other by their sockets in it: past every network.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def on_thread() -> None:
        try:
            _checked("unshare", _libc.unshare(_CLONE_NEWNS))
            _checked("mount", _libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None))
            for place in hidden:
                _checked(f"mount at {place}", _libc.mount(b"hidden", str(place).encode(), b"tmpfs", _MS_RDONLY, b"size=4k"))
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=on_thread)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _checked(what: str, result: int) -> None:
    if result != 0:
        raise Refused(f"{what}: {os.strerror(ctypes.get_errno())} (root, or CAP_SYS_ADMIN, is needed)")
