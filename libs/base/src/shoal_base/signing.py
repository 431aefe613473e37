"""Signed calls: `1:<node|user>:<unix ms>:<nonce>:<HMAC over method, time, nonce>`. No clock in here: time is an argument.

A signature counts once: the verifier keeps the nonces of its window. A client whose clock differs is told the server's time, itself signed, so that nobody
in between can make a client sign for a time of his choice.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping

import msgspec

SCHEME = "1"
KINDS = ("node", "user")
# How far a call's time may be from the server's: the network's delay and the clocks' difference.
WINDOW_MS = 60_000
# Limit: nonces kept, about 100 bytes each. 1,000,000 a window are 10,000 calls a second; beyond, calls are refused until the window has moved.
MAX_NONCES = 1_000_000
_NONCE_BYTES = 12


def _mac(secret: bytes, *parts: str) -> str:
    return hmac.new(secret, "\n".join(parts).encode(), hashlib.sha256).hexdigest()


class SignatureRefused(Exception):
    """Why; and, for a clock that is off, the server's signed time for the caller."""

    def __init__(self, why: str, server_time: str = "") -> None:
        super().__init__(why)
        self.server_time = server_time


class Signer(msgspec.Struct):
    """One client's side. `offset_ms` is what it learned of the server's clock."""

    kind: str
    secret: bytes
    offset_ms: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is none of {KINDS}")

    def sign(self, method: str, now_ms: int) -> str:
        time, nonce = str(now_ms + self.offset_ms), os.urandom(_NONCE_BYTES).hex()
        return f"{SCHEME}:{self.kind}:{time}:{nonce}:{_mac(self.secret, 'call', self.kind, method, time, nonce)}"

    def adapt(self, signature: str, server_time: str, now_ms: int) -> bool:
        """Takes over the server's clock from its answer to `signature`; False when the answer is not the server's."""
        nonce = signature.split(":")[3]
        time, _, mac = server_time.partition(":")
        if not time.isdigit() or not hmac.compare_digest(mac, _mac(self.secret, "time", time, nonce)):
            return False
        self.offset_ms = int(time) - now_ms
        return True


class Verifier(msgspec.Struct):
    """The server's side, for both secrets."""

    secrets: Mapping[str, bytes]
    _nonces: dict[int, set[str]] = msgspec.field(default_factory=dict)  # by time // WINDOW_MS

    def verify(self, signature: str, method: str, now_ms: int) -> str:
        """The kind of secret that signed. Raises SignatureRefused."""
        parts = signature.split(":")
        if len(parts) != 5 or parts[0] != SCHEME or not parts[2].isascii() or not parts[2].isdigit() or len(parts[2]) > 15:
            raise SignatureRefused("no signature of ours (metadata 'shoal-auth'): use the same version of Shoal on both sides")
        _, kind, time, nonce, mac = parts
        secret = self.secrets.get(kind)
        if secret is None or not hmac.compare_digest(mac.encode(), _mac(secret, "call", kind, method, time, nonce).encode()):
            raise SignatureRefused(f"the {kind if kind in KINDS else 'given'} secret is not this cluster's: use the file that `shoal start --head` wrote")
        when = int(time)
        if abs(when - now_ms) > WINDOW_MS:
            told = str(now_ms)
            raise SignatureRefused(f"the caller's clock is {(when - now_ms) / 1000:+.0f} s off", f"{told}:{_mac(secret, 'time', told, nonce)}")
        self._once(when, nonce, now_ms)
        return kind

    def _once(self, when: int, nonce: str, now_ms: int) -> None:
        oldest = (now_ms - WINDOW_MS) // WINDOW_MS
        for window in [window for window in self._nonces if window < oldest]:
            del self._nonces[window]
        seen = self._nonces.setdefault(when // WINDOW_MS, set())
        if nonce in seen:
            raise SignatureRefused("this call was made before (its nonce is known)")
        if sum(map(len, self._nonces.values())) >= MAX_NONCES:
            raise SignatureRefused(f"more than {MAX_NONCES} calls in {WINDOW_MS // 1000} s: try again later")
        seen.add(nonce)
