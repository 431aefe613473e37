"""Records in Redis: each batch is one script, which first compares the epoch, so that a control store that was replaced cannot write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from .backend import SCHEMA_VERSION, Backend, Batch, Fenced, Opened, StorageError, StorageUnavailable

if TYPE_CHECKING:
    from redis import Redis

TIMEOUT_S = 5.0
DEFAULT_NAME = "shoal"
FENCED = "FENCED"

# KEYS: epoch, then each table's hash. ARGV: my epoch, then for each operation: the index of its hash, "=" or "-", key, record.
_APPLY = """
local epoch = redis.call('GET', KEYS[1])
if epoch ~= ARGV[1] then return redis.error_reply('FENCED ' .. tostring(epoch)) end
local i = 2
while i <= #ARGV do
  local hash = KEYS[tonumber(ARGV[i])]
  if ARGV[i + 1] == '=' then redis.call('HSET', hash, ARGV[i + 2], ARGV[i + 3]) else redis.call('HDEL', hash, ARGV[i + 2]) end
  i = i + 4
end
return redis.status_reply('OK')
"""


class RedisBackend(Backend):
    """The cluster's name (`?name=`) keeps several apart on one server; its keys share a hash tag, and so a shard."""

    name = "redis"

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        options = parse_qs(parts.query)
        self._prefix = "{" + options.pop("name", [DEFAULT_NAME])[0] + "}:"
        if options:
            raise StorageError(f"storage {parts.scheme}://…: unknown option {', '.join(sorted(options))}; only name is known")
        self._url = url.partition("?")[0]
        self._shown = f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
        self._client: Redis | None = None
        self._epoch = 0

    def open(self, fresh_cluster_id: bytes) -> Opened:
        try:
            import redis
        except ImportError as error:
            raise StorageError("storage in Redis needs the package redis; install shoal-gcs[redis]") from error
        try:
            self._client = client = redis.Redis.from_url(self._url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
            return self._open(client, fresh_cluster_id)
        except (redis.RedisError, ValueError, OSError) as error:
            self.close()
            raise StorageError(f"storage {self._shown}: {error}; is the server running, and are address and password right?") from error
        except StorageError:
            self.close()
            raise

    def apply(self, batch: Batch) -> None:
        import redis

        client = self._client
        if client is None:
            raise StorageError(f"storage {self._shown} is not open")
        keys = [self._prefix + "epoch"]
        index: dict[str, int] = {}
        operations: list[str | int | bytes] = []
        for (table, key), record in batch.items():
            if table not in index:
                keys.append(self._table(table))
                index[table] = len(keys)
            operations += (index[table], "-" if record is None else "=", key, b"" if record is None else record)
        try:
            self._script(keys=keys, args=[self._epoch, *operations])
        except redis.ResponseError as error:
            if str(error).startswith(FENCED):
                newer = str(error)[len(FENCED) + 1 :]
                raise Fenced(f"storage {self._shown}: epoch {self._epoch} was replaced ({newer}): another control store has taken over") from error
            if str(error).startswith(("OOM", "READONLY", "MISCONF", "LOADING", "BUSY")):
                raise StorageUnavailable(f"storage {self._shown}: {error}") from error
            raise StorageError(f"storage {self._shown}: {error}") from error
        except (redis.RedisError, OSError) as error:
            raise StorageUnavailable(f"storage {self._shown}: {error}") from error

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _open(self, client: Redis, fresh_cluster_id: bytes) -> Opened:
        schema = client.get(self._prefix + "schema")
        if schema is not None and int(schema) > SCHEMA_VERSION:
            raise StorageError(
                f"storage {self._shown} has schema version {int(schema)}, and this release of shoal-gcs knows up to {SCHEMA_VERSION}; "
                "start the newer release again, or give another name"
            )
        client.set(self._prefix + "schema", SCHEMA_VERSION)
        client.set(self._prefix + "cluster_id", fresh_cluster_id, nx=True)
        # From here on every older control store is refused, so what is read next is complete.
        self._epoch = int(client.incr(self._prefix + "epoch"))
        self._script = client.register_script(_APPLY)
        opened = Opened(self._epoch, _bytes(client.get(self._prefix + "cluster_id")) or fresh_cluster_id)
        for hash_key in sorted(client.scan_iter(match=self._table("*"), count=1000)):
            table = _bytes(hash_key).decode().removeprefix(self._table(""))
            rows: dict[Any, Any] = client.hgetall(hash_key)
            opened.records[table] = sorted((_bytes(key), _bytes(record)) for key, record in rows.items())
        return opened

    def _table(self, table: str) -> str:
        return f"{self._prefix}t:{table}"


def _bytes(answer: Any) -> bytes:
    """The client is typed for both ways of decoding; ours does none."""
    return answer or b""
