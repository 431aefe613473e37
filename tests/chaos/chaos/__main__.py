"""`python -m chaos`: minutes of faults from a seed, over a cluster that works; ends with 0 when every promise was kept."""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from .faults import FAULTS, kinds
from .machines import HEAD, HOME, RECORDS, STANDBY, VICTIMS, Machines
from .namespaces import Refused
from .network import Network
from .run import Run, keep
from .schedule import each, plan, to_lines


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long faults come (default 10)")
    parser.add_argument("--seed", type=int, default=None, help="the schedule's; default: another one each time")
    parser.add_argument("--each", type=int, default=0, metavar="N", help="instead: every kind N times, one at a time, for figures")
    parser.add_argument("--kinds", default="", help=f"only these, separated by semicolons, of: {'; '.join(FAULTS)}")
    parser.add_argument("--lease-s", type=float, default=10.0, help="a node that is silent for so long is dead (default 10)")
    parser.add_argument("--standby", action="store_true", help="two heads, with their records in a Redis server")
    parser.add_argument("--plan", action="store_true", help="only print the schedule")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1 << 31)
    names = [name.strip() for name in given.kinds.split(";") if name.strip()] or None
    if unknown := sorted(set(names or ()) - set(FAULTS)):
        parser.error(f"there is no fault {unknown[0]!r}")
    everyone = [HEAD, HOME, *VICTIMS]
    machines_of = {"head": [HEAD], "home": [HOME], "any": everyone, "victim": list(VICTIMS)}
    chosen = kinds(given.lease_s, names, standby=given.standby)
    events = each(seed, given.each, chosen, machines_of) if given.each else plan(seed, given.minutes * 60, chosen, machines_of)
    if given.plan:
        print(to_lines(events), end="")
        return 0
    again = f"make chaos SEED={seed}" + (f" EACH={given.each}" if given.each else f" MINUTES={given.minutes:g}")
    if names:
        again += f' KINDS="{given.kinds}"'
    if given.standby:
        again += " STANDBY=1"
    print(f"seed {seed}, {len(events)} faults; again: {again}", flush=True)
    try:
        network = Network([*everyone, *((STANDBY, RECORDS) if given.standby else ())], seed)
    except Refused as why:
        print(f"this machine has no place for chaos: {why}", file=sys.stderr)
        return 1
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:7.1f}] {text}", flush=True)

    try:
        machines = Machines(network, lease_s=given.lease_s)
    except BaseException:
        network.close()
        raise
    try:
        run = Run(machines, seed, say)
        try:
            run.play(events, one_at_a_time=bool(given.each))
            report = run.finish(lambda: say(f"logs and ledgers are in {keep(machines, run.report, Path(tempfile.mkdtemp(prefix=f'chaos-{seed}-')))}"))
        finally:
            run.close()
    finally:
        machines.close()
        network.close()
    print(report.table())
    print(report.summary())
    for failure in report.failures:
        print(f"FAILED: {failure}")
    if report.failures:
        print(f"again: {again}")
        return 1
    print(f"every promise was kept; {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
