"""Measures hyperparameter search: what a trial costs, how fast reports and checkpoints pass, schedulers at work, and the driver alone.

    python benchmarks/tune.py                          # ours, and Optuna in one process beside it
    python benchmarks/tune.py --peer PYTHON            # the same rows with Ray, in the environment of that interpreter (it needs ray[tune])
    python benchmarks/tune.py --only 'trials*'         # those whose names match
    python benchmarks/tune.py --json FILE

A trial does nothing but report, so that what is measured is the engine. The first row is a program from its start to its end; the others share a warm cluster
of four CPUs. Figures from a busy machine mean little: the load is printed.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TRIALS, REPORTS = 50, 3
MANY_REPORTS, CHECKPOINTS, CHECKPOINT_BYTES = 500, 30, 1 << 20
SIMULATED = 10_000
CPUS = 4
# Limit: no engine may keep a run waiting for longer.
TIMEOUT_S = 1800.0
MARK = "FIGURES "
# Rows where less is better are in seconds.
SECONDS = ", s"


# -- the work: the same calls for both engines, since the names are ------------------------------------------------------


def trial(config: dict[str, Any]) -> None:
    tune = importlib.import_module(f"{config['engine']}.tune")
    for step in range(config["reports"]):
        tune.report({"loss": (config["x"] - 3) ** 2 / (step + 1)})


def checkpointing(config: dict[str, Any]) -> None:
    tune = importlib.import_module(f"{config['engine']}.tune")
    data = os.urandom(CHECKPOINT_BYTES)
    for step in range(CHECKPOINTS):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "data").write_bytes(data)
            tune.report({"loss": step}, checkpoint=tune.Checkpoint.from_directory(folder))


class Engine:
    """A library of trials, by its root module's name."""

    def __init__(self, name: str, storage: str) -> None:
        self.name, self.storage = name, storage
        self.core = importlib.import_module(name)
        self.tune = importlib.import_module(f"{name}.tune")

    def start(self) -> None:
        self.core.init(address="local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False)

    def fit_s(self, function: Callable[..., None] = trial, reports: int = REPORTS, samples: int = TRIALS, **more: Any) -> float:
        space = {"x": self.tune.uniform(0, 10), "engine": self.name, "reports": reports}
        config = self.tune.TuneConfig(metric="loss", mode="min", num_samples=samples, **more)
        tuner = self.tune.Tuner(function, param_space=space, tune_config=config, run_config=self.tune.RunConfig(storage_path=self.storage, verbose=0))
        begin = time.perf_counter()
        results = tuner.fit()
        took_s = time.perf_counter() - begin
        if len(results) != samples or results.errors:
            raise RuntimeError(f"{len(results)} of {samples} trials, errors {results.errors[:1]}")
        return took_s

    def scheduler(self, name: str, **arguments: Any) -> Any:
        return getattr(importlib.import_module(f"{self.name}.tune.schedulers"), name)(**arguments)

    def optuna(self) -> Any:
        return importlib.import_module(f"{self.name}.tune.search.optuna").OptunaSearch(seed=1)


def rows(engine: Engine) -> dict[str, Callable[[], float]]:
    first = f"trials: {TRIALS} of {REPORTS} reports"
    found: dict[str, Callable[[], float]] = {
        f"{first}, again{SECONDS}": engine.fit_s,
        f"{first}, reuse_actors{SECONDS}": lambda: engine.fit_s(reuse_actors=True),
        f"{first}, Optuna{SECONDS}": lambda: engine.fit_s(search_alg=engine.optuna()),
        f"{first}, ASHA{SECONDS}": lambda: engine.fit_s(scheduler=engine.scheduler("ASHAScheduler", max_t=REPORTS, reduction_factor=3)),
        "reports of one trial, /s": lambda: MANY_REPORTS / engine.fit_s(reports=MANY_REPORTS, samples=1),
        "reports of four trials, /s": lambda: 4 * MANY_REPORTS / engine.fit_s(reports=MANY_REPORTS, samples=4),
        "checkpoints of 1 MiB, /s": lambda: CHECKPOINTS / engine.fit_s(checkpointing, samples=1),
    }
    if engine.name == "shoal":
        found["simulated trials of one report, /s"] = simulated
    return found


def simulated() -> float:
    """The loop alone: what a driver could decide."""
    from shoal.tune import uniform
    from shoal.tune.execution.policy import LoopPolicy
    from shoal.tune.testing import Simulation

    begin = time.perf_counter()
    Simulation(space={"x": uniform(0, 1)}, policy=LoopPolicy(num_samples=SIMULATED), cpus=64, iterations=1, check_every=0).run()
    return SIMULATED / (time.perf_counter() - begin)


def optuna_alone() -> float:
    """200 trials of a loop around Optuna, in this process."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    begin = time.perf_counter()
    study = optuna.create_study()
    study.optimize(lambda one: (one.suggest_float("x", 0, 10) - 3) ** 2, n_trials=200)
    return time.perf_counter() - begin


# -- programs ----------------------------------------------------------------------------------------------------------


def inside(name: str, only: str) -> dict[str, float]:
    """In the engine's own interpreter."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as storage:
        begin = time.perf_counter()
        engine = Engine(name, storage)
        engine.start()
        engine.fit_s()
        figures[f"trials: {TRIALS} of {REPORTS} reports, import and init too{SECONDS}"] = time.perf_counter() - begin
        for row, measure in rows(engine).items():
            if fnmatch.fnmatch(row, only):
                figures[row] = measure()
        engine.core.shutdown()
    return figures


def measured(python: str, name: str, only: str) -> dict[str, float]:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "0"}
    done = subprocess.run([python, __file__, "--inside", name, "--only", only], capture_output=True, text=True, timeout=TIMEOUT_S, env=environment, check=False)
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            figures: dict[str, float] = json.loads(line[len(MARK) :])
            return figures
    raise SystemExit(f"{name} in {python} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", help="an interpreter whose environment has ray[tune]")
    parser.add_argument("--only", default="*", help="a pattern of names")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        print(MARK + json.dumps(inside(given.inside, given.only)))
        return
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    ours = measured(sys.executable, "shoal", given.only)
    peer = measured(given.peer, "ray", given.only) if given.peer else {}
    print(f"{'':<58}{'shoal':>10}{'ray':>10}{'times':>8}" if peer else f"{'':<58}{'shoal':>10}")
    for row, value in ours.items():
        line = f"{row:<58}{value:>10.4g}"
        if row in peer:
            line += f"{peer[row]:>10.4g}{(peer[row] / value if row.endswith(SECONDS) else value / peer[row]):>8.1f}"
        print(line)
    beside = optuna_alone()
    print(f"{'Optuna alone, in one process, 200 trials' + SECONDS:<58}{beside:>10.4g}")
    if given.json:
        Path(given.json).write_text(json.dumps({"load": os.getloadavg()[0], "shoal": ours, "ray": peer, "optuna_alone_s": beside}, indent=1))


if __name__ == "__main__":
    main()
