"""A driver that says when a part of the cluster serves again.

`python -m chaos.probe ADDRESS` reads `ID PROBE ARGUMENTS...` and answers `{"id": ..., "at": ...}`.

- `task MACHINE`: a task on that machine puts an object and gets it.
- `actor`: a named actor is looked up at the control store, and answers.
- `elsewhere NODE FILE`: a task begins on that node (and makes the file), never ends there, and ends at once when it is run on another.
- `detached NAME`: a detached actor answers; then it is ended.
- `hog MACHINE SHARE FILE`: a task takes memory there for ever, and writes down when this share of the machine's is used; run again, it ends at once.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import shoal
from shoal.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from shoal_raylet.usage import NodeReader

BOUND_S = 120.0
_PAUSE_S = 0.02
NAME = "probe"


@shoal.remote(num_cpus=0, max_retries=-1)
def touch() -> int:
    return len(shoal.get(shoal.put(bytes(1 << 20))))


@shoal.remote(num_cpus=0, max_retries=-1)
def move(node: str, file: str) -> None:
    if shoal.get_runtime_context().get_node_id() == node:
        Path(file).touch()
        while True:
            time.sleep(1.0)


@shoal.remote(num_cpus=0, max_retries=-1)
def hog(share: float, file: str) -> None:
    if Path(file).exists():
        return
    held, memory = [], NodeReader()
    while True:
        held.append(b"x" * (10 << 20))
        time.sleep(0.01)
        usage = memory.read()
        if not Path(file).exists() and usage.used > share * usage.total:
            written = Path(f"{file}.new")
            written.write_text(f"{os.getpid()} {time.monotonic()}")
            written.rename(file)


@shoal.remote(num_cpus=0, max_restarts=-1)
class Answering:
    def answer(self) -> int:
        return 1


def once(what: str, arguments: list[str]) -> None:
    if what == "actor":
        shoal.get(shoal.get_actor(NAME).answer.remote(), timeout=BOUND_S)
    elif what == "task":
        shoal.get(touch.options(resources={arguments[0]: 0.001}).remote(), timeout=BOUND_S)
    elif what == "elsewhere":
        node, file = arguments
        shoal.get(move.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)).remote(node, file), timeout=BOUND_S)
    elif what == "detached":
        actor = shoal.get_actor(arguments[0], namespace=NAME)
        shoal.get(actor.answer.remote(), timeout=BOUND_S)
        shoal.kill(actor)
    elif what == "hog":
        machine, share, file = arguments
        shoal.get(hog.options(resources={machine: 0.001}).remote(float(share), file), timeout=BOUND_S)
    else:
        raise SystemExit(f"there is no probe {what!r}")


def serve(number: str, what: str, arguments: list[str]) -> None:
    deadline = time.monotonic() + BOUND_S
    while True:
        try:
            once(what, arguments)
        except Exception as error:
            if time.monotonic() > deadline:
                tell(id=number, at=0.0, error=f"{type(error).__name__}: {error}")
                return
            time.sleep(_PAUSE_S)
        else:
            tell(id=number, at=time.monotonic(), error="")
            return


_telling = threading.Lock()


def tell(**row: object) -> None:
    with _telling:
        print(json.dumps(row), flush=True)


def main() -> None:
    shoal.init(address=sys.argv[1], log_to_driver=False)
    # Here, away from what is broken: its answer depends on the control store alone.
    here = NodeAffinitySchedulingStrategy(shoal.get_runtime_context().get_node_id(), soft=False)
    kept = Answering.options(name=NAME, scheduling_strategy=here).remote()
    shoal.get(kept.answer.remote(), timeout=BOUND_S)
    tell(ready=True)
    for line in sys.stdin:
        number, what, *arguments = line.split()
        threading.Thread(target=serve, args=(number, what, arguments), daemon=True).start()
    shoal.shutdown()


if __name__ == "__main__":
    main()
