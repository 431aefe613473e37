"""A driver that keeps many small tasks under way, and says each quarter of a second how many have ended: `python -m chaos.flow ADDRESS`."""

from __future__ import annotations

import json
import sys
import threading
import time

import shoal

TASK_S = 0.02
UNDER_WAY = 200
EVERY_S = 0.25


@shoal.remote(max_retries=-1)
def rest() -> int:
    time.sleep(TASK_S)
    return 1


def main() -> None:
    shoal.init(address=sys.argv[1], log_to_driver=False)
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    shoal.get([rest.remote() for _ in range(UNDER_WAY)], timeout=90)
    print(json.dumps({"ready": True}), flush=True)
    refs = [rest.remote() for _ in range(UNDER_WAY)]
    done, told = 0, time.monotonic()
    while not ended.is_set():
        ready, refs = shoal.wait(refs, num_returns=1, timeout=EVERY_S)
        done += sum(shoal.get(ready))
        refs += [rest.remote() for _ in ready]
        if (now := time.monotonic()) - told >= EVERY_S:
            print(json.dumps({"at": now, "done": done}), flush=True)
            told = now
    shoal.shutdown()


if __name__ == "__main__":
    main()
