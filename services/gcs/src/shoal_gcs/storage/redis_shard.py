"""One Redis server that holds a cluster's records, or a part of them: its keys, its scripts, and its errors in our words.

Every write is a script that first compares the epoch on this very server, so a control store that was replaced cannot write, whatever it still believes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .backend import Batch, Fenced, StorageError, StorageUnavailable

if TYPE_CHECKING:
    from redis import Redis

TIMEOUT_S = 5.0
ROWS_A_SCAN = 1000

# KEYS: epoch, leader, cluster id, schema, shards, complete, standbys.
# ARGV: address ('': without a term), term ms, cluster id to make, cluster id expected ('': any), schema, shards.
TAKE = """
local schema = redis.call('GET', KEYS[4])
if schema and (not tonumber(schema) or tonumber(schema) > tonumber(ARGV[5])) then return {'SCHEMA', schema} end
local id = redis.call('GET', KEYS[3])
if ARGV[4] ~= '' and id ~= ARGV[4] then return {'LOST', id or ''} end
local shards = redis.call('GET', KEYS[5]) or '1'
if id and shards ~= ARGV[6] then return {'SHARDS', shards} end
if ARGV[1] ~= '' then
  local leader = redis.call('GET', KEYS[2])
  local epoch, address = string.match(leader or '', '^(%d+) (.*)$')
  local now = redis.call('TIME')
  if address and address ~= ARGV[1] then
    redis.call('ZADD', KEYS[7], tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000) + tonumber(ARGV[2]), ARGV[1])
    return {'LED', epoch, address, id}
  end
end
redis.call('SET', KEYS[4], ARGV[5])
redis.call('SET', KEYS[5], ARGV[6])
redis.call('SET', KEYS[3], ARGV[3], 'NX')
local epoch = redis.call('INCR', KEYS[1])
if ARGV[1] ~= '' then
  redis.call('SET', KEYS[2], epoch .. ' ' .. ARGV[1], 'PX', ARGV[2])
  redis.call('ZREM', KEYS[7], ARGV[1])
end
return {'OK', tostring(epoch), redis.call('GET', KEYS[3]), redis.call('EXISTS', KEYS[6])}
"""

# On the other servers. KEYS: epoch, cluster id, index. ARGV: epoch, cluster id, index, '1' when it has been here before.
JOIN = """
local id = redis.call('GET', KEYS[2])
local index = redis.call('GET', KEYS[3])
if id and (id ~= ARGV[2] or index ~= ARGV[3]) then return {'OTHER', id, index or ''} end
if not id and ARGV[4] == '1' then return {'LOST', ''} end
local epoch = redis.call('GET', KEYS[1])
if epoch and tonumber(epoch) > tonumber(ARGV[1]) then return {'FENCED', epoch} end
redis.call('SET', KEYS[2], ARGV[2])
redis.call('SET', KEYS[3], ARGV[3])
redis.call('SET', KEYS[1], ARGV[1])
return {'OK'}
"""

_COMPARE = """
local epoch = redis.call('GET', KEYS[1])
if not epoch then return redis.error_reply('EMPTIED') end
if epoch ~= ARGV[1] then return redis.error_reply('FENCED ' .. epoch) end
"""

# KEYS: epoch, then each table's hash, at the end the note of an unfinished batch. ARGV: my epoch, then for each operation: the index of its hash, "=" or "-",
# key, record.
APPLY = (
    _COMPARE
    + """
local i = 2
while i <= #ARGV do
  local hash = KEYS[tonumber(ARGV[i])]
  if ARGV[i + 1] == '=' then redis.call('HSET', hash, ARGV[i + 2], ARGV[i + 3]) else redis.call('HDEL', hash, ARGV[i + 2]) end
  i = i + 4
end
redis.call('DEL', KEYS[#KEYS])
return redis.status_reply('OK')
"""
)

# A batch for several servers, before any of it is written. KEYS: epoch, note. ARGV: my epoch, then table, "=" or "-", key, record, again and again.
NOTE = (
    _COMPARE
    + """
redis.call('DEL', KEYS[2])
for i = 2, #ARGV, 4 do redis.call('RPUSH', KEYS[2], ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]) end
return redis.status_reply('OK')
"""
)

# All servers have joined. KEYS: epoch, the mark. ARGV: my epoch.
COMPLETE = (
    _COMPARE
    + """
redis.call("SET", KEYS[2], "1")
return redis.status_reply("OK")
"""
)

# KEYS: epoch, leader, standbys. ARGV: my epoch, leader's value, term ms. PEXPIRE works on a server that has no memory left for SET.
RENEW = (
    _COMPARE
    + """
if redis.call('GET', KEYS[2]) == ARGV[2] then redis.call('PEXPIRE', KEYS[2], ARGV[3]) else redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3]) end
local now = redis.call('TIME')
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000))
return redis.call('ZRANGE', KEYS[3], 0, -1)
"""
)

# KEYS: epoch, leader. ARGV: my epoch, leader's value.
RESIGN = """
if redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('GET', KEYS[2]) == ARGV[2] then redis.call('DEL', KEYS[2]) end
return redis.status_reply('OK')
"""

# What a server says when it cannot serve now, and what to do about it. Errors from inside a script begin with the same words.
_PASSING = {
    "OOM": "it is full (maxmemory): free memory there, or allow it more",
    "READONLY": "it is a read-only replica: give the address of the primary",
    "MISCONF": "it cannot save to its disk, and so takes no writes: free space there",
    "NOREPLICAS": "it has fewer replicas than its min-replicas-to-write",
    "LOADING": "it is reading its data from disk: it will serve in a moment",
    "BUSY": "it is busy with a script",
    "MASTERDOWN": "it is a replica without a primary",
    "CLUSTERDOWN": "its cluster is down",
}
_LASTING = {
    "WRONGPASS": "it refuses the password: give redis://:PASSWORD@HOST:PORT/DB",
    "NOAUTH": "it wants a password: give redis://:PASSWORD@HOST:PORT/DB",
    "NOPERM": "its user may not run scripts (EVAL) or not touch these keys",
    "WRONGTYPE": "a key of ours is used by another program: give another ?name=",
}


class Shard:
    """One server. Not for several threads, but for `renew`, which has a connection of its own."""

    def __init__(self, url: str, shown: str, prefix: str, timeout_s: float = TIMEOUT_S) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self.shown = f"storage {shown}"
        self.prefix = prefix
        self._errors = redis
        self._client: Redis = redis.Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 1))
        self._scripts: dict[str, Any] = {}

    def run(self, script: str, keys: Sequence[str], arguments: Sequence[str | int | bytes]) -> Any:
        """Raises Fenced, StorageUnavailable, StorageError."""
        made = self._scripts.get(script)
        if made is None:
            made = self._scripts[script] = self._client.register_script(script)
        try:
            return made(keys=[self.prefix + key for key in keys], args=list(arguments))
        except (self._errors.RedisError, OSError) as error:
            raise self._explained(error) from error

    def tables(self) -> Iterator[tuple[str, bytes, bytes]]:
        """Every (table, key, record), a bounded number of rows at a time. Raises StorageUnavailable, StorageError."""
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", self.prefix) + "t:*"
        try:
            for hash_key in sorted(self._client.scan_iter(match=pattern, count=ROWS_A_SCAN)):
                table = hash_key.decode().removeprefix(self.prefix + "t:")
                for key, record in self._client.hscan_iter(hash_key, count=ROWS_A_SCAN):
                    yield table, key, record
        except (self._errors.RedisError, OSError) as error:
            raise self._explained(error) from error

    def count(self, keys: Sequence[str]) -> int:
        """How many of these keys are there, whatever their prefix. Raises StorageUnavailable, StorageError."""
        try:
            return int(self._client.exists(*keys))
        except (self._errors.RedisError, OSError) as error:
            raise self._explained(error) from error

    def noted(self) -> Batch:
        """The batch that was noted and perhaps not finished; empty: there is none."""
        try:
            flat: Any = self._client.lrange(self.prefix + "note", 0, -1)
        except (self._errors.RedisError, OSError) as error:
            raise self._explained(error) from error
        rows = zip(flat[0::4], flat[1::4], flat[2::4], flat[3::4], strict=True)
        return {(table.decode(), key): record if kind == b"=" else None for table, kind, key, record in rows}

    def close(self) -> None:
        self._client.close()

    def _explained(self, error: Exception) -> StorageError:
        text = str(error)
        word = self._word_of(error, text)
        if word == "FENCED":
            return Fenced(f"{self.shown}: this control store's epoch was replaced by {text.split()[1]}: another control store has taken over")
        if word == "EMPTIED":
            return StorageError(f"{self.shown} no longer holds this cluster: it was emptied, or restarted without its data. Restore its data, then start again")
        if "unauthenticated" in text:  # what came first was too long for it
            word = "NOAUTH"
        if word in _PASSING:
            return StorageUnavailable(f"{self.shown}: {_PASSING[word]} ({text})")
        if word in _LASTING:
            return StorageError(f"{self.shown}: {_LASTING[word]} ({text})")
        if isinstance(error, self._errors.AuthenticationError):
            return StorageError(f"{self.shown}: {_LASTING['WRONGPASS']} ({text})")
        if isinstance(error, self._errors.ResponseError):
            return StorageError(f"{self.shown}: {text}")
        return StorageUnavailable(f"{self.shown}: {text}; is the server running, and are address and password right?")

    def _word_of(self, error: Exception, text: str) -> str:
        """The error's first word, which clients keep in different places, and older servers inside the text when it came from a script."""
        named = {"OutOfMemoryError": "OOM", "ReadOnlyError": "READONLY", "BusyLoadingError": "LOADING", "NoPermissionError": "NOPERM",
                 "MasterDownError": "MASTERDOWN", "ClusterDownError": "CLUSTERDOWN"}  # fmt: skip
        inner = re.search(r"-([A-Z]{3,}) ", text)
        return named.get(type(error).__name__) or (inner[1] if inner else text.partition(" ")[0])
