"""Measures training: a short run of two workers from the import to the end, steps, reports, checkpoints, and the return of a killed worker.

    python benchmarks/train.py                            # ours, also on a node with SHOAL_PRELOAD=torch,torch._dynamo, and torchrun beside it
    python benchmarks/train.py --peer PYTHON              # the same rows with Ray, in the environment of that interpreter (it needs ray[train] and torch)
    python benchmarks/train.py --json FILE

The work is the same function for all: a network of 128 × 128 under DistributedDataParallel, gloo, one thread each. Whole programs are measured from outside,
the rest inside of one program with a warm cluster. Figures from a busy machine mean little: the load is printed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS, WIDTH, BATCH = 200, 128, 32
# Few: an engine that looks for reports every two seconds would keep 200 waiting for seven minutes.
REPORTS, CHECKPOINTS, CHECKPOINT_BYTES = 30, 10, 1 << 20
WORKERS = 2
# Limit: no program may keep a run waiting for longer.
TIMEOUT_S = 600.0
MARK = "FIGURES "


# -- the work ----------------------------------------------------------------------------------------------------------


def steps_per_s(wrap: Callable[[Any], Any]) -> float:
    import torch

    torch.manual_seed(0)
    model = wrap(torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    begin = time.perf_counter()
    for _ in range(STEPS):
        loss = model(torch.randn(BATCH, WIDTH)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return STEPS / (time.perf_counter() - begin)


def library(config: dict[str, Any]) -> Any:
    return importlib.import_module(f"{config['engine']}.train")


def step_loop(config: dict[str, Any]) -> None:
    torch_part = importlib.import_module(f"{config['engine']}.train.torch")
    library(config).report({"steps_per_s": steps_per_s(torch_part.prepare_model)})


def checkpoint_of(config: dict[str, Any], folder: str, data: bytes) -> Any:
    Path(folder, "data").write_bytes(data)
    return library(config).Checkpoint.from_directory(folder)


def report_loop(config: dict[str, Any]) -> None:
    """Reports as fast as it can; the last one tells the rates. The first checkpoint is what keeps metrics in an engine that keeps no others."""
    train = library(config)
    first = train.get_context().get_world_rank() == 0
    begin = time.perf_counter()
    for i in range(REPORTS):
        train.report({"i": i})
    reports_per_s = REPORTS / (time.perf_counter() - begin)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        for i in range(CHECKPOINTS):
            train.report({"i": i}, checkpoint=checkpoint_of(config, folder, os.urandom(CHECKPOINT_BYTES)) if first else None)
        checkpoints_per_s = CHECKPOINTS / (time.perf_counter() - begin)
        metrics = {"reports_per_s": reports_per_s, "checkpoints_per_s": checkpoints_per_s}
        train.report(metrics, checkpoint=checkpoint_of(config, folder, b"") if first else None)


def killed_loop(config: dict[str, Any]) -> None:
    train = library(config)
    checkpoint = train.get_checkpoint()
    with tempfile.TemporaryDirectory() as folder:
        if checkpoint is not None:
            train.report({"back_s": time.time() - float(checkpoint.get_metadata()["killed"])}, checkpoint=checkpoint_of(config, folder, b""))
            return
        saved = checkpoint_of(config, folder, b"")
        saved.set_metadata({"killed": time.time()})
        train.report({"back_s": 0.0}, checkpoint=saved)
    if train.get_context().get_world_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    importlib.import_module("torch.distributed").barrier()


# -- programs ----------------------------------------------------------------------------------------------------------


def fit(engine: str, loop: Callable[..., None], storage: str, failures: int = 0) -> tuple[Any, float]:
    train, torch_part = importlib.import_module(f"{engine}.train"), importlib.import_module(f"{engine}.train.torch")
    trainer = torch_part.TorchTrainer(
        loop, train_loop_config={"engine": engine}, scaling_config=train.ScalingConfig(num_workers=WORKERS),
        run_config=train.RunConfig(storage_path=storage, failure_config=train.FailureConfig(max_failures=failures)),
    )  # fmt: skip
    begin = time.perf_counter()
    result = trainer.fit()
    return result, time.perf_counter() - begin


def start(engine: str) -> Any:
    core = importlib.import_module(engine)
    core.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    return core


def short_program(engine: str) -> dict[str, float]:
    """What a user's program does."""
    importlib.import_module("torch")
    with tempfile.TemporaryDirectory() as storage:
        core = start(engine)
        _, took_s = fit(engine, step_loop, storage)
        core.shutdown()
    return {"fit(), the first, s": took_s}


def long_program(engine: str) -> dict[str, float]:
    """Several runs on one cluster. Each figure is told as soon as it is there: an engine that is too slow for all of them keeps what it has."""
    with tempfile.TemporaryDirectory() as storage:
        core = start(engine)
        fit(engine, step_loop, storage)
        result, took_s = fit(engine, step_loop, storage)
        tell({"fit() again, s": took_s})
        if result.metrics and "steps_per_s" in result.metrics:  # not where metrics without a checkpoint are dropped
            tell({"DDP steps, /s": result.metrics["steps_per_s"]})
        result, _ = fit(engine, report_loop, storage)
        tell({"reports of 2 workers, /s": result.metrics["reports_per_s"], "checkpoints of 1 MiB, /s": result.metrics["checkpoints_per_s"]})
        result, _ = fit(engine, killed_loop, storage, failures=1)
        core.shutdown()
    return {"back after SIGKILL, s": result.metrics["back_s"]}


def torchrun_worker() -> dict[str, float]:
    """What torchrun starts twice."""
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    distributed.init_process_group("gloo")
    rate = steps_per_s(DistributedDataParallel)
    rank = distributed.get_rank()
    distributed.destroy_process_group()
    return {"DDP steps, /s": rate} if rank == 0 else {}


def tell(figures: dict[str, float]) -> None:
    print(f"{MARK}{json.dumps(figures)}", flush=True)


# -- from outside ------------------------------------------------------------------------------------------------------


def run(command: list[str], **extra: str) -> tuple[dict[str, Any], float]:
    """The figures that a program printed, and how long all of it took."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_TRAIN_V2_ENABLED": "1", **extra}
    begin = time.perf_counter()
    # A group of its own, so that nothing of a program that is too slow stays behind.
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    error = ""
    try:
        told, complaints = program.communicate(timeout=TIMEOUT_S)
        if program.returncode:
            error = "\n".join(complaints.strip().splitlines()[-5:])
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        told, _ = program.communicate()
        error = f"not done within {TIMEOUT_S:g} s"
    took_s = time.perf_counter() - begin
    figures: dict[str, Any] = {"error": error} if error else {}
    for line in told.splitlines():
        if MARK in line:
            figures |= json.JSONDecoder().raw_decode(line.partition(MARK)[2])[0]  # another process may have written behind it
    return figures, took_s


def measured(python: str, engine: str) -> dict[str, Any]:
    me = str(Path(__file__).resolve())
    if engine == "torchrun":
        figures, whole_s = run([python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORKERS), me, "--program", "worker"])
        return {"whole program, s": whole_s, **figures}
    if engine == "preloaded":
        return run([python, me, "--program", "long"], SHOAL_PRELOAD="torch,torch._dynamo", OPENBLAS_NUM_THREADS="1")[0]
    short, whole_s = run([python, me, "--program", "short", "--engine", engine])
    if "error" in short:
        return short
    long, _ = run([python, me, "--program", "long", "--engine", engine])
    return {"whole program, s": whole_s, **short, **long}


def table(columns: dict[str, dict[str, Any]]) -> None:
    names = [name for name in dict.fromkeys(name for column in columns.values() for name in column) if name != "error"]
    others = [engine for engine in columns if engine not in ("shoal", "preloaded")]
    print(f"\n{'':<28}" + "".join(f"{engine:>12}" for engine in columns) + "".join(f"{f'shoal : {engine}':>18}" for engine in others))
    for name in names:
        line = f"{name:<28}" + "".join(f"{column[name]:>12.2f}" if name in column else f"{'':>12}" for column in columns.values())
        ours = columns["shoal"].get(name)
        for engine in others:
            theirs = columns[engine].get(name)
            better = None if not ours or not theirs else (ours / theirs if name.endswith("/s") else theirs / ours)
            line += f"{f'{better:.1f} × better' if better else '':>18}"
        print(line)
    for engine, column in columns.items():
        if "error" in column:
            print(f"{engine}: {column['error']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter of an environment with ray[train] and torch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--program", choices=["short", "long", "worker"], help=argparse.SUPPRESS)
    parser.add_argument("--engine", default="shoal", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.program:
        figures = torchrun_worker() if given.program == "worker" else {"short": short_program, "long": long_program}[given.program](given.engine)
        tell(figures)
        return 0
    about = {"python": platform.python_version(), "cores": len(os.sched_getaffinity(0)), "load_1_min": os.getloadavg()[0]}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    columns = {"shoal": measured(sys.executable, "shoal"), "preloaded": measured(sys.executable, "preloaded"), "torchrun": measured(sys.executable, "torchrun")}
    if given.peer:
        columns["ray"] = measured(given.peer, "ray")
    table(columns)
    if given.json is not None:
        given.json.write_text(json.dumps({"machine": about, "rows": columns}, indent=1) + "\n")
    return 1 if any("error" in column for column in columns.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
