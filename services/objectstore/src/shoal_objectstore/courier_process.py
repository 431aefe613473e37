"""A process that writes, reads and removes files of one remote file system, one after the other, for the store that started it (`courier`).

    python -m shoal_objectstore.courier_process                      asked through the socket that is its standard input
    python -m shoal_objectstore.courier_process remove NAME          removes a folder and all in it; for whoever removes a node

The file system's URI is in SHOAL_COURIER_URI. pyarrow's file systems serve what they know, fsspec's the rest.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any

from shoal_base.processes import set_parent_death_signal

from .courier import COUNT, LENGTH, STORED

# What pyarrow.fs.FileSystem.from_uri takes.
_ARROW_SCHEMES = frozenset({"file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss"})
# Where folders are but the beginnings of names.
_WITHOUT_FOLDERS = frozenset({"s3", "gcs", "abfs"})
_STEP = 8 << 20
# A part lies there in blocks, each compressed by Zstandard at level 1 if that makes it smaller by a fifth, which a sample of it says beforehand: a link of
# 100 MB/s is slower than the codec (docs/figures.md has the figures).
BLOCK, SAMPLE, WORTH = 4 << 20, 64 << 10, 0.8
_BLOCK = struct.Struct("<BII")
_PLAIN, _ZSTD = 0, 1
# Limit: a folder that was not removed within this stays.
REMOVE_S = 60


class Files:
    """The folder of a file system that a URI names."""

    def __init__(self, uri: str) -> None:
        try:
            from pyarrow import Codec, fs
        except ImportError as error:
            raise OSError("pyarrow is not installed here: pip install 'shoal-objectstore[remote]'") from error
        scheme = uri.partition("://")[0]
        if scheme in _ARROW_SCHEMES:
            self._files, self._base = fs.FileSystem.from_uri(uri)
        else:
            try:
                from fsspec.core import url_to_fs
            except ImportError as error:
                raise OSError(f"{scheme}:// is a file system of fsspec, which is not installed here: pip install 'shoal-objectstore[remote]'") from error
            files, self._base = url_to_fs(uri)
            self._files = fs.PyFileSystem(fs.FSSpecHandler(files))
        self._codec = Codec("zstd", compression_level=1)
        self._makes_folders = self._files.type_name not in _WITHOUT_FOLDERS
        self._missing = fs.FileType.NotFound

    def pack(self, part: memoryview) -> bytes:
        """One block, compressed if a sample of it becomes small enough."""
        if len(part) > SAMPLE and len(self._codec.compress(part[:SAMPLE], asbytes=True)) < WORTH * SAMPLE:
            packed = self._codec.compress(part, asbytes=True)
            if len(packed) < WORTH * len(part):
                return _BLOCK.pack(_ZSTD, len(part), len(packed)) + packed
        return _BLOCK.pack(_PLAIN, len(part), len(part)) + bytes(part)

    def unpack(self, block: bytes) -> Any:
        """Raises OSError for what is none."""
        how, size, stored = _BLOCK.unpack_from(block)
        if how == _PLAIN and size == stored:
            return memoryview(block)[_BLOCK.size :]
        if how != _ZSTD or size > BLOCK:
            raise OSError("its bytes are not what was written")
        return self._codec.decompress(memoryview(block)[_BLOCK.size :], size, asbytes=True)

    def path(self, name: str) -> str:
        return f"{self._base.rstrip('/')}/{name}"

    def create(self, name: str) -> Any:
        path = self.path(name)
        if self._makes_folders:
            self._files.create_dir(path.rpartition("/")[0], recursive=True)
        return self._files.open_output_stream(path, compression=None)

    def open(self, name: str) -> Any:
        return self._files.open_input_file(self.path(name))

    def remove(self, name: str, folder: bool = False) -> None:
        path = self.path(name)
        try:
            (self._files.delete_dir if folder else self._files.delete_file)(path)
        except OSError:
            if self._files.get_file_info(path).type != self._missing:
                raise


class Process:
    def __init__(self, sock: socket.socket, uri: str) -> None:
        self._sock = sock
        self._uri = uri
        self._files: Files | None = None
        self._buffer = memoryview(bytearray(BLOCK))

    def run(self) -> None:
        """Until the store closes the socket. Raises EOFError when it does so in the middle of something."""
        while head := self._sock.recv(LENGTH.size, socket.MSG_WAITALL):
            ask = json.loads(bytes(self._receive(LENGTH.unpack(head)[0])))
            failure = self._write(ask) if ask["do"] == "write" else self._try(self._read if ask["do"] == "read" else self._remove, ask)
            if failure is None:
                self._sock.sendall(COUNT.pack(0))
            else:
                text = json.dumps({"missing": isinstance(failure, FileNotFoundError), "text": f"{type(failure).__name__}: {failure}"}).encode()
                self._sock.sendall(COUNT.pack(-len(text)) + text)

    def _open(self) -> Files:
        if self._files is None:
            self._files = Files(self._uri)
        return self._files

    def _try(self, do: Any, *given: Any) -> Exception | None:
        try:
            do(*given)
        except (EOFError, ConnectionError):
            raise
        except Exception as error:  # whatever a file system's client raises is told to the store
            return error
        return None

    def _receive(self, count: int) -> memoryview:
        n = self._sock.recv_into(self._buffer[:count], 0, socket.MSG_WAITALL)
        if n != count:
            raise EOFError("the store has ended")
        return self._buffer[:count]

    def _write(self, ask: dict[str, Any]) -> Exception | None:
        out: list[Any] = []
        failure = self._try(lambda: out.append(self._open().create(ask["path"])))
        stored = []
        for left in ask["sizes"]:  # to the end, also after a failure: the store sends it all before it listens
            nbytes = 0
            while left:
                part = self._receive(min(left, BLOCK))
                left -= len(part)
                if failure is None:
                    block = self._open().pack(part)
                    nbytes += len(block)
                    failure = self._try(out[0].write, block)
            stored.append(nbytes)
        failure = failure or self._try(out[0].close)
        if failure is None and stored:
            self._send(b"".join(STORED.pack(n) for n in stored))
        return failure

    def _read(self, ask: dict[str, Any]) -> None:
        left, waiting = ask["stored"], b""
        with self._open().open(ask["path"]) as file:
            file.seek(ask["offset"])
            while left and (data := file.read(min(left, _STEP))):
                left -= len(data)
                waiting += data
                while len(block := waiting[: _BLOCK.size]) == _BLOCK.size and len(waiting) >= _BLOCK.size + _BLOCK.unpack(block)[2]:
                    end = _BLOCK.size + _BLOCK.unpack(block)[2]
                    self._send(self._open().unpack(waiting[:end]))
                    waiting = waiting[end:]

    def _send(self, data: Any) -> None:
        self._sock.sendall(COUNT.pack(len(data)))
        self._sock.sendall(data)

    def _remove(self, ask: dict[str, Any]) -> None:
        for path in ask["paths"]:
            self._open().remove(path)


def main(argv: Sequence[str]) -> int:
    uri = os.environ.pop("SHOAL_COURIER_URI")
    if list(argv[:1]) == ["remove"]:
        signal.alarm(REMOVE_S)
        Files(uri).remove(argv[1], folder=True)
        return 0
    set_parent_death_signal(parent=int(os.environ.pop("SHOAL_COURIER_PARENT")))
    with socket.socket(fileno=os.dup(0)) as sock:
        try:
            Process(sock, uri).run()
        except (EOFError, ConnectionError):
            # Not by the interpreter's end, which would close a half-written file as if it were whole.
            os._exit(1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
