"""Datasets: group, sort, map rows, write, feed to PyTorch; beside the same in another environment's Ray.

    python benchmarks/data.py                                # our figures
    python benchmarks/data.py --peer /path/to/ray/python     # both, and their ratios
    python benchmarks/data.py --rows 500000 --only group sort

The data are 5 M rows in 10 Parquet files of 3 columns, made with a seed in a temporary folder. Each row of the table is measured in a process of its own
after a small dataset has warmed the workers (and PyTorch is imported, which a program that trains has done); the figure is the median of `--repeat` runs.
Beside our stands what the engine alone takes in one process. Figures from a busy machine mean little: the load is printed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILES = 10
KEYS = 1000
# Limit: no row may take longer, in either environment.
TIMEOUT_S = 900.0


def make_files(folder: Path, rows: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    for i in range(FILES):
        n = rows // FILES
        table = pa.table({"k": random.integers(0, KEYS, n), "v": random.random(n), "id": random.integers(0, rows, n)})
        pq.write_table(table, folder / f"{i:02d}.parquet")


# -- rows: the same program for both -------------------------------------------------------------------------


def group(data: Any, folder: str, rows: int) -> None:
    found = data.read_parquet(folder).groupby("k").mean("v").take_all()
    assert len(found) == KEYS, len(found)


def sort(data: Any, folder: str, rows: int) -> None:
    assert data.read_parquet(folder).sort("id").materialize().count() == rows


def map_rows(data: Any, folder: str, rows: int) -> None:
    n = rows // 5
    assert data.range(n).map(lambda row: {"x": row["id"] * 2}).sum("x") == n * (n - 1)


def write(data: Any, folder: str, rows: int) -> None:
    with tempfile.TemporaryDirectory() as out:
        data.read_parquet(folder).map_batches(lambda batch: {**batch, "w": batch["v"] * 2}).write_parquet(out)
        assert any(Path(out).iterdir())


def torch_batches(data: Any, folder: str, rows: int) -> None:
    assert sum(len(batch["v"]) for batch in data.read_parquet(folder).iter_torch_batches(batch_size=1024)) == rows


def numpy_batches(data: Any, folder: str, rows: int) -> None:
    assert sum(len(batch["v"]) for batch in data.read_parquet(folder).iter_batches(batch_size=1024)) == rows


def shuffle(data: Any, folder: str, rows: int) -> None:
    assert data.read_parquet(folder).random_shuffle(seed=1).materialize().count() == rows


ROWS: dict[str, Callable[[Any, str, int], None]] = {
    "group": group, "sort": sort, "map_rows": map_rows, "write": write, "torch_batches": torch_batches, "numpy_batches": numpy_batches, "shuffle": shuffle,
}  # fmt: skip
WHAT = {
    "group": "mean of 1,000 keys", "sort": "sorted by a column", "map_rows": "range(n / 5).map(row function).sum", "write": "read, map_batches, write Parquet",
    "torch_batches": "tensors, 1,024 rows each", "numpy_batches": "arrays, 1,024 rows each", "shuffle": "all rows in random order",
}  # fmt: skip


def measure(engine: str, name: str, folder: str, rows: int, repeat: int) -> list[float]:
    """In this process; `engine` is the package."""
    runtime, data = importlib.import_module(engine), importlib.import_module(f"{engine}.data")
    runtime.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False)
    if engine == "ray":
        data.DataContext.get_current().enable_progress_bars = False
    data.range(100).map(lambda row: row).sort("id").take()
    if name == "torch_batches":
        importlib.import_module("torch")  # a second or more, which a program that trains has spent before
    seconds = []
    for _ in range(repeat):
        began = time.perf_counter()
        ROWS[name](data, folder, rows)
        seconds.append(time.perf_counter() - began)
    runtime.shutdown()
    return seconds


def in_process(python: str, engine: str, name: str, folder: str, rows: int, repeat: int) -> float | str:
    command = [python, __file__, "--measure", engine, name, folder, str(rows), str(repeat)]
    # The place of this file must not become a place of modules.
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd="/")
    for line in done.stdout.splitlines():
        if line.startswith("SECONDS "):
            return statistics.median(json.loads(line[8:]))
    return (done.stderr.strip().splitlines() or ["nothing came"])[-1][:60]


def alone(name: str, folder: str, rows: int) -> float | None:
    """The engine underneath, in one process."""
    import polars as pl

    began = time.perf_counter()
    if name == "group":
        pl.scan_parquet(f"{folder}/*.parquet").group_by("k").agg(pl.col("v").mean()).collect()
    elif name == "sort":
        pl.read_parquet(f"{folder}/*.parquet").sort("id")
    elif name == "map_rows":
        mapped = [{"x": row["id"] * 2} for row in ({"id": i} for i in range(rows // 5))]
        sum(row["x"] for row in mapped)
    elif name == "write":
        with tempfile.TemporaryDirectory() as out:
            for i, file in enumerate(sorted(Path(folder).iterdir())):
                pl.read_parquet(file).with_columns(w=pl.col("v") * 2).write_parquet(f"{out}/{i}.parquet", compression="snappy")
    else:
        return None
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--peer", metavar="PYTHON", help="the Python of an environment with Ray")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        engine, name, folder, rows, repeat = given.measure
        print("SECONDS", json.dumps(measure(engine, name, folder, int(rows), int(repeat))), flush=True)
        return
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder), given.rows)
        print(f"{given.rows:,} rows in {FILES} files; {os.cpu_count()} CPUs; load {os.getloadavg()[0]:.1f}")
        print(f"{'row':14} {'ours':>9} {'alone':>9} {'peer':>9} {'ratio':>7}  what")
        for name in given.only:
            ours = in_process(sys.executable, "shoal", name, folder, given.rows, given.repeat)
            peer = in_process(given.peer, "ray", name, folder, given.rows, given.repeat) if given.peer else None
            figures[name] = {"ours_s": ours, "alone_s": alone(name, folder, given.rows), "peer_s": peer}
            ratio = f"{peer / ours:6.1f}x" if isinstance(ours, float) and isinstance(peer, float) else ""
            print(f"{name:14} {_text(ours):>9} {_text(figures[name]['alone_s']):>9} {_text(peer):>9} {ratio:>7}  {WHAT[name]}", flush=True)
    if given.json:
        Path(given.json).write_text(json.dumps(figures, indent=1))


def _text(figure: float | str | None) -> str:
    return "" if figure is None else figure if isinstance(figure, str) else f"{figure:.3f} s"


if __name__ == "__main__":
    main()
