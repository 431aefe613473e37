"""Records in Redis: on one server, or on several as shards. One control store at a time leads, by a term that it renews; others may stand by for its end.

Keys, on the first server: `{NAME}:schema`, `cluster_id`, `epoch`, `shards`, `leader` ("EPOCH HOST:PORT", expires with the term), `standbys`, `note`, and a
hash `t:TABLE` for each table. On server i > 0: `{NAME:i}:epoch`, `cluster_id`, `index`, and its part of the hashes. A record's server is the CRC-32 of table
and key. The braces are Redis Cluster's hash tags: all keys of a shard lie together.

A batch for one server is one script. One for several is first noted on the first server, then written to each, the first one last, which also takes the
note away; whoever opens finishes what is noted. So it is written as a whole or not at all, whenever the writer dies: before the note nothing, after it
everything.
"""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Sequence
from urllib.parse import parse_qs, urlsplit

from .backend import SCHEMA_VERSION, Backend, Batch, Claim, Fenced, Led, Opened, StorageError, StorageUnavailable, lost
from .redis_shard import APPLY, COMPLETE, JOIN, NOTE, RENEW, RESIGN, TAKE, TIMEOUT_S, Shard

DEFAULT_NAME = "shoal"
MAX_SHARDS = 64
# Of a term: reading many records must not outlast it.
_RENEW_SHARE = 0.25


class RedisBackend(Backend):
    """The cluster's name (`?name=`) keeps several apart on one server."""

    name = "redis"
    shared = True

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        options = parse_qs(parts.query)
        self._name = options.pop("name", [DEFAULT_NAME])[0]
        if options:
            raise StorageError(f"storage {parts.scheme}://…: unknown option {', '.join(sorted(options))}; only name is known")
        self._places = _places(url.partition("?")[0])
        if len(self._places) > MAX_SHARDS:
            raise StorageError(f"storage {parts.scheme}://…: {len(self._places)} servers, and at most {MAX_SHARDS} can be shards of a cluster")
        self._shards: list[Shard] = []
        self._renewing: Shard | None = None  # its own connection: a batch under way must not delay it
        self._claim: Claim | None = None
        self._epoch = 0
        self._unfinished: Batch = {}

    @property
    def _shown(self) -> str:
        return self._shards[0].shown if self._shards else f"storage {self._places[0][1]}"

    def open(self, fresh_cluster_id: bytes, *, expected: bytes = b"", claim: Claim | None = None) -> Opened:
        try:
            if not self._shards:
                self._shards = [Shard(url, shown, self._prefix(index)) for index, (url, shown) in enumerate(self._places)]
        except ImportError as error:
            raise StorageError("storage in Redis needs the package redis; install shoal-gcs[redis]") from error
        except ValueError as error:
            raise StorageError(f"{self._shown}: {error}") from error
        self._claim = claim
        try:
            return self._open(fresh_cluster_id, expected, claim)
        except (Led, StorageUnavailable):
            raise
        except StorageError:
            self.close()
            raise

    def apply(self, batch: Batch) -> None:
        if not self._shards:
            raise StorageError(f"{self._shown} is not open")
        # What was noted and failed on its way is finished first: its note must not be replayed over what comes now.
        batch = {**self._unfinished, **batch}
        shares = {self._shard_of(*place) for place in batch}
        if len(shares) < 2 and not self._unfinished:
            for index in shares:
                self._apply_to(index, batch)
            return
        self._unfinished = batch
        self._shards[0].run(NOTE, ["epoch", "note"], [self._epoch, *_flat(batch)])
        self._apply_all(batch)
        self._unfinished = {}

    def renew(self) -> Sequence[str]:
        claim = self._claim
        if claim is None or not self._shards:
            raise StorageError(f"{self._shown} was opened without a term")
        if self._renewing is None:
            url, shown = self._places[0]
            self._renewing = Shard(url, shown, self._prefix(0), min(TIMEOUT_S, claim.term_s / 3))
        names = self._renewing.run(RENEW, ["epoch", "leader", "standbys"], [self._epoch, f"{self._epoch} {claim.address}", int(claim.term_s * 1000)])
        return [name.decode() for name in names]

    def resign(self) -> None:
        if self._claim is None or not self._epoch or not self._shards:
            return
        with contextlib.suppress(StorageError):  # then it ends with its term
            self._shards[0].run(RESIGN, ["epoch", "leader"], [self._epoch, f"{self._epoch} {self._claim.address}"])

    def close(self) -> None:
        for shard in (*self._shards, *([self._renewing] if self._renewing is not None else [])):
            shard.close()
        self._shards, self._renewing = [], None

    # -- opening

    def _open(self, fresh_cluster_id: bytes, expected: bytes, claim: Claim | None) -> Opened:
        for index, shard in enumerate(self._shards):
            self._check_place(shard, index)
        first = self._shards[0]
        opened, complete = self._take(first, fresh_cluster_id, expected, claim)
        for index, shard in enumerate(self._shards[1:], 1):
            self._join(shard, index, opened, complete)
        # From here on every older control store is refused everywhere, so what is read next is complete.
        if len(self._shards) > 1:
            if noted := first.noted():
                self._apply_all(noted)
            first.run(COMPLETE, ["epoch", "complete"], [self._epoch])
        self._read(opened)
        return opened

    def _check_place(self, shard: Shard, index: int) -> None:
        """Servers in another order would look like a new cluster."""
        if shard.count([self._prefix(other) + "epoch" for other in range(MAX_SHARDS) if other != index]):
            raise StorageError(
                f"{shard.shown} is named as server {index + 1} of cluster {self._name!r}, and holds another part of it; "
                "name the same servers in the same order, each once"
            )

    def _take(self, first: Shard, fresh_cluster_id: bytes, expected: bytes, claim: Claim | None) -> tuple[Opened, bool]:
        keys = ["epoch", "leader", "cluster_id", "schema", "shards", "complete", "standbys"]
        address, term_ms = (claim.address, int(claim.term_s * 1000)) if claim is not None else ("", 0)
        answer = first.run(TAKE, keys, [address, term_ms, fresh_cluster_id, expected, SCHEMA_VERSION, len(self._shards)])
        match answer[0]:
            case b"OK":
                self._epoch = int(answer[1])
                return Opened(self._epoch, answer[2]), bool(answer[3])
            case b"LED":
                leader, epoch = answer[2].decode(), int(answer[1])
                raise Led(f"{self._shown}: cluster {self._name!r} is led by the head at {leader}, epoch {epoch}", leader, epoch, answer[3])
            case b"LOST":
                raise lost(self._shown, expected, answer[1])
            case b"SHARDS":
                raise StorageError(
                    f"{self._shown}: cluster {self._name!r} is kept on {answer[1].decode()} servers, and {len(self._shards)} are named; "
                    "name the same ones in the same order"
                )
            case _:
                raise StorageError(
                    f"{self._shown} has schema version {answer[1].decode('utf-8', 'replace')}, and this release of shoal-gcs knows up to {SCHEMA_VERSION}; "
                    "start the newer release again, or give another name"
                )

    def _join(self, shard: Shard, index: int, opened: Opened, complete: bool) -> None:
        answer = shard.run(JOIN, ["epoch", "cluster_id", "index"], [opened.epoch, opened.cluster_id, index, "1" if complete else "0"])
        if answer[0] == b"FENCED":
            raise Fenced(f"{shard.shown}: epoch {opened.epoch} was replaced by {answer[1].decode()}: another control store has taken over")
        if answer[0] == b"LOST":
            raise lost(f"{shard.shown} (shard {index})", opened.cluster_id, b"")
        if answer[0] == b"OTHER":
            raise StorageError(
                f"{shard.shown} is shard {answer[2].decode()} of cluster {answer[1].hex()}, not shard {index} of {opened.cluster_id.hex()}; "
                "name the same servers in the same order, or give another name"
            )

    def _read(self, opened: Opened) -> None:
        """Renews the term on the way, however much there is to read."""
        pause_s = self._claim.term_s * _RENEW_SHARE if self._claim is not None else float("inf")
        renewed = time.monotonic()
        found: dict[str, dict[bytes, bytes]] = {}  # a server may name a row twice
        for shard in self._shards:
            for table, key, record in shard.tables():
                found.setdefault(table, {})[key] = record
                if time.monotonic() - renewed > pause_s:
                    renewed = time.monotonic()
                    self.renew()
        opened.records = {table: sorted(rows.items()) for table, rows in found.items()}
        if self._claim is not None:
            self.renew()

    # -- writing

    def _prefix(self, index: int) -> str:
        return f"{{{self._name}:{index}}}:" if index else f"{{{self._name}}}:"

    def _shard_of(self, table: str, key: bytes) -> int:
        return zlib.crc32(key, zlib.crc32(table.encode())) % len(self._shards)

    def _apply_all(self, batch: Batch) -> None:
        """The first server last: with its part goes the note."""
        for index in range(len(self._shards) - 1, -1, -1):
            self._apply_to(index, batch)

    def _apply_to(self, index: int, batch: Batch) -> None:
        keys = ["epoch"]
        tables: dict[str, int] = {}
        operations: list[str | int | bytes] = []
        for (table, key), record in batch.items():
            if self._shard_of(table, key) != index:
                continue
            if table not in tables:
                keys.append(f"t:{table}")
                tables[table] = len(keys)
            operations += (tables[table], "-" if record is None else "=", key, b"" if record is None else record)
        if operations or not index:
            self._shards[index].run(APPLY, [*keys, "note"], [self._epoch, *operations])


def _flat(batch: Batch) -> list[str | bytes]:
    return [part for (table, key), record in batch.items() for part in (table, "-" if record is None else "=", key, b"" if record is None else record)]


def _places(url: str) -> list[tuple[str, str]]:
    """(URL, what to show of it: no password) of each server. Raises StorageError."""
    scheme, _, rest = url.partition("://")
    if scheme == "unix":
        return [(f"unix://{path}", f"unix://{path.rpartition('@')[2]}") for path in rest.split(",") if path]
    hosts, slash, database = rest.partition("/")
    login, at, hosts = hosts.rpartition("@")
    made = [(f"{scheme}://{login}{at}{host}{slash}{database}", f"{scheme}://{host}{slash}{database}") for host in hosts.split(",") if host]
    if not made:
        raise StorageError(f"storage {scheme}://…: no server is named; choose redis://HOST:PORT/DB")
    return made
