"""A thread that is some items ahead of who consumes them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
# How long the end of an abandoned iteration waits for its thread.
JOIN_S = 5.0


class Prefetch(Generic[T]):
    """Iterates once over `source`, which runs in a thread of its own, at most `ahead` items in front. `close` ends the thread."""

    def __init__(self, source: Iterator[T], ahead: int) -> None:
        self._source = source
        self._ahead = max(1, ahead)
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="shoal-data-prefetch", daemon=True)

    def _run(self) -> None:
        try:
            for item in self._source:
                with self._changed:
                    self._changed.wait_for(lambda: len(self._items) < self._ahead or self._closed)
                    if self._closed:
                        break
                    self._items.append(item)
                    self._changed.notify_all()
                del item
        except BaseException as error:
            self._error = error
        finally:
            try:
                close = getattr(self._source, "close", None)
                if close is not None:
                    close()
            finally:
                with self._changed:
                    self._ended = True
                    self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        # Not before the first item is asked for: an iterator that nobody used has nothing to end.
        self._thread.start()
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._items or self._ended)
                    if not self._items:
                        break
                    item = self._items.popleft()
                    self._changed.notify_all()
                yield item
                del item
            if self._error is not None:
                raise self._error
        finally:
            self.close()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(JOIN_S)
