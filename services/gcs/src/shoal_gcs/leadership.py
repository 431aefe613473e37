"""Who leads, when several control stores share one storage: a term in the storage, renewed by whoever holds it, and awaited by whoever stands by.

Two heads can never both write, since every write compares the epoch in the storage. The term keeps them from both *deciding*: a head whose term is over
refuses what it is asked, until it has the term again or finds that it was replaced. The storage's clock ends the term for others, this machine's for the head
itself, and earlier: from the moment before the renewal was asked for. Nobody's time of day matters.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
from collections.abc import Callable

from .storage import Backend, Claim, Led, Opened, StorageError, StorageUnavailable

POLL_S = 0.2  # a standby looks so often whether the term is free
RENEWALS = 4  # in one term
# A head that is started without standing by waits so many terms for a predecessor's to end.
PATIENCE_TERMS = 1.5
_log = logging.getLogger(__name__)


def clock() -> float:
    """Goes on while the machine is suspended, unlike CLOCK_MONOTONIC: others' clocks do as well."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Term:
    """Until when this head may act."""

    __slots__ = ("ends", "length_s")

    def __init__(self, length_s: float, asked_at: float) -> None:
        self.length_s = length_s
        self.ends = asked_at + length_s

    def renewed(self, asked_at: float) -> None:
        self.ends = asked_at + self.length_s

    def over(self) -> bool:
        return clock() >= self.ends

    @classmethod
    def endless(cls) -> Term:
        """Of a storage that only one process can open."""
        return cls(math.inf, 0.0)


class GaveUp(Exception):
    """Told to end while it stood by."""


class Candidate:
    """A control store on its way to lead. `on_led` is called when it learns who leads, again when that changes."""

    def __init__(self, backend: Backend, claim: Claim, *, stand_by: bool, expected: bytes, on_led: Callable[[Led], None]) -> None:
        self._backend = backend
        self._claim = claim
        self._stand_by = stand_by
        self._expected = expected
        self._on_led = on_led
        self._led: Led | None = None
        self._trouble = ""

    async def lead(self, end: asyncio.Event) -> tuple[Opened, Term]:
        """Raises Led (without standing by), StorageError, GaveUp."""
        patient_until = clock() + PATIENCE_TERMS * self._claim.term_s
        while True:
            asked_at = clock()
            try:
                opened = await asyncio.to_thread(self._backend.open, os.urandom(16), expected=self._expected, claim=self._claim)
                return opened, Term(self._claim.term_s, asked_at)
            except Led as led:
                self._heard(led)
                if not self._stand_by and clock() > patient_until:
                    raise
            except StorageUnavailable as error:
                # A first start says so at once; who has seen the cluster waits for its storage as long as it takes.
                if not self._expected:
                    raise
                self._complain(str(error))
            try:
                async with asyncio.timeout(POLL_S):
                    await end.wait()
            except TimeoutError:
                continue
            raise GaveUp

    def _heard(self, led: Led) -> None:
        # From here on an empty storage is a lost one, not a new cluster.
        self._expected = led.cluster_id
        self._trouble = ""
        if self._led is None or (self._led.address, self._led.epoch) != (led.address, led.epoch):
            self._led = led
            _log.info("stands by: %s", led)
            self._on_led(led)

    def _complain(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            _log.warning("%s; trying on", trouble)


class TermKeeper(threading.Thread):
    """Renews on a thread of its own: a busy loop must not cost the term. `on_standbys` and `on_lost` are called on it."""

    def __init__(self, backend: Backend, term: Term, on_standbys: Callable[[list[str]], None], on_lost: Callable[[StorageError], None]) -> None:
        super().__init__(name="shoal-gcs-term", daemon=True)
        self._backend = backend
        self._term = term
        self._on_standbys = on_standbys
        self._on_lost = on_lost
        self._ended = threading.Event()
        self._standbys: list[str] = []

    def run(self) -> None:
        while not self._ended.wait(self._term.length_s / RENEWALS):
            asked_at = clock()
            try:
                standbys = list(self._backend.renew())
            except StorageUnavailable as error:
                if self._term.over():
                    _log.warning("the term of this head is over, so it answers nothing until it has it again: %s", error)
                continue
            except StorageError as error:
                if not self._ended.is_set():
                    self._on_lost(error)
                return
            self._term.renewed(asked_at)
            if standbys != self._standbys:
                self._standbys = standbys
                self._on_standbys(standbys)

    def stop(self) -> None:
        """Returns when nothing is renewed any more."""
        self._ended.set()
        if self.is_alive():
            self.join(self._term.length_s)
