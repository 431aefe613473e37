"""A driver that reads so much of what it stores that nothing can be spilled: `python -m chaos.filler ADDRESS`.

It says when its next put waits for room, drops what it reads on `drop`, and says when that put has ended.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import numpy as np
import shoal

PIECE = 1 << 20
# A put that takes longer waits for room.
WAITS_S = 0.5


class Filler:
    def __init__(self) -> None:
        self._held: list[Any] = []
        self._since = time.monotonic()
        self._dropped = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True)

    def fill(self) -> None:
        """Until a put waits."""
        self._thread.start()
        while time.monotonic() - self._since < WAITS_S:
            if not self._thread.is_alive():
                raise SystemExit("a put was refused before it had waited")
            time.sleep(0.01)

    def _fill(self) -> None:
        while not self._dropped.is_set():
            self._since = time.monotonic()
            ref = shoal.put(np.full(PIECE // 8, len(self._held)))
            self._held.append(shoal.get(ref))

    def drop(self) -> None:
        """Until the put that waits has ended."""
        self._dropped.set()
        self._held = []
        self._thread.join()


def main() -> None:
    shoal.init(address=sys.argv[1], log_to_driver=False)
    filler = Filler()
    filler.fill()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        if line.strip() == "drop":
            filler.drop()
            print(json.dumps({"at": time.monotonic()}), flush=True)
    shoal.shutdown()


if __name__ == "__main__":
    main()
