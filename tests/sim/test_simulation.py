"""Random histories of a whole cluster in one process, on a virtual clock. The same seed gives the same history."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)

HERE = Path(__file__).parent
SEEDS = int(os.environ.get("SHOAL_SIM_SEEDS", "20"))
BATCH = 20
SCALE = "from history import place_actors; print(place_actors({nodes}, {actors}))"


def run(arguments: list[str], timeout_s: float) -> str:
    """In a process of its own: the order of Python's sets of bytes depends on the hash seed, which must be the same each time."""
    env = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join([str(HERE), *(os.path.abspath(path) for path in sys.path if path)])}
    done = subprocess.run([sys.executable, *arguments], env=env, cwd=HERE, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_whatever_goes_wrong_the_properties_hold(first: int) -> None:
    seeds = [str(seed) for seed in range(first, min(first + BATCH, SEEDS))]
    rows = [json.loads(line) for line in run(["history.py", *seeds], 250.0).splitlines()]
    assert [row["seed"] for row in rows] == [int(seed) for seed in seeds]
    for row in rows:
        text = "\n  ".join([row["problem"], *row.get("history", ())])
        assert not row["problem"], f"seed {row['seed']} ({row['faults']}): {text}\nreplay: PYTHONHASHSEED=0 python {HERE / 'history.py'} {row['seed']}"


def test_the_same_seed_gives_the_same_history() -> None:
    first, second = (json.loads(run(["history.py", "3"], 60.0)) for _ in range(2))
    assert first["steps"] == second["steps"] > 1000


def test_a_hundred_nodes_take_a_thousand_actors() -> None:
    assert float(run(["-c", SCALE.format(nodes=100, actors=1000)], 120.0)) < 5.0
