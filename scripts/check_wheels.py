"""Builds all wheels, and installs each library from them, alone with the core, in a clean environment outside the repository; there its example runs.

    python scripts/check_wheels.py [core data train tune serve rl]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = [
    "libs/base", "services/objectstore", "services/gcs", "services/raylet", "libs/core", "libs/data", "libs/train", "libs/tune", "libs/serve", "libs/rl",
]  # fmt: skip
UV = (Path(sys.executable), ROOT / "scripts/uv.py")
TIMEOUT_S = 600


@dataclass(frozen=True)
class Check:
    """What is installed, and what then runs in an empty folder that has these files of the repository."""

    install: Sequence[str]
    files: Sequence[str]
    commands: Sequence[Sequence[str]]
    absent: Sequence[str] = ()  # libraries that must not have come along


CHECKS = {
    "objectstore": Check(["shoal-objectstore", "numpy"], ["examples/shared_memory.py"], [["python", "shared_memory.py"]]),
    "core": Check(["shoal-core"], ["examples/quickstart.py"], [["python", "quickstart.py"], ["shoal", "version"]], ["data", "train", "tune", "serve", "rl"]),
    "data": Check(["shoal-data[pandas]"], ["examples/data_logs.py"], [["python", "data_logs.py"]], ["train", "tune", "serve", "rl"]),
    "train": Check(
        ["shoal-train[torch]", "scikit-learn"], ["examples/train_digits.py"], [["python", "train_digits.py", "--epochs", "3"]], ["data", "tune", "serve", "rl"]
    ),
    "tune": Check(
        ["shoal-tune[optuna]", "scikit-learn"], ["examples/sweep.yaml", "examples/sweep_digits.py"],
        [["shoal", "tune", "run", "sweep.yaml", "--storage", "results"]], ["data", "serve", "rl"],
    ),
    "serve": Check(["shoal-serve", "scikit-learn"], ["examples/serve_iris.py"], [["python", "serve_iris.py"]], ["data", "train", "tune", "rl"]),
    "rl": Check(
        ["shoal-rl"], [], [["shoal", "rl", "train", "--algo", "ppo", "--env", "CartPole-v1", "--stop-timesteps", "4000"]], ["data", "serve"]
    ),
}  # fmt: skip


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> None:
    print("$", *(Path(part).name if isinstance(part, Path) else part for part in command), flush=True)
    subprocess.run([str(part) for part in command], cwd=cwd, env=env, check=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)


def build(wheels: Path, copies: Path) -> Path:
    """From copies: what the working tree has built already must not slip into a wheel. Returns the file that names the wheels, as constraints."""
    unwanted = shutil.ignore_patterns("*.so", "*.c", "*.cpp", "*_pb2*", "build", "*.egg-info", "__pycache__", "tests")
    ours = wheels / "ours.txt"
    ours.touch()
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copies / package, ignore=unwanted)
    for package in PACKAGES:
        # The core is built against the store's header, which it takes from the wheel built before it.
        run(
            *UV, "build", "--quiet", "--wheel", "--no-sources", "--build-constraint", ours, "--build-constraint", ROOT / "constraints-build.txt",
            "--out-dir", wheels, copies / package, cwd=copies,
        )  # fmt: skip
        name = f"shoal-{Path(package).name}"
        (wheel,) = wheels.glob(f"{name.replace('-', '_')}-*.whl")
        with ours.open("a") as file:  # by name and file: an index may have something else under that name
            file.write(f"{name} @ {wheel.as_uri()}\n")
    return ours


def check(name: str, here: Path, ours: Path) -> None:
    print(f"-- {name}", flush=True)
    what = CHECKS[name]
    place = here / name
    place.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", place / "clean", cwd=here)
    bin_ = place / "clean/bin"
    run(
        *UV, "pip", "install", "--quiet", "--python", bin_ / "python", "--constraint", ROOT / "constraints.txt", "--constraint", ours, *what.install, cwd=here,
    )  # fmt: skip
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env["PATH"] = f"{bin_}{os.pathsep}{env['PATH']}"
    for file in what.files:
        shutil.copy(ROOT / file, place / Path(file).name)
    for library in what.absent:
        run(bin_ / "python", "-c", f"import importlib.util, sys; sys.exit(importlib.util.find_spec('shoal.{library}') is not None)", cwd=place, env=env)
    for program, *arguments in what.commands:
        run(bin_ / program, *arguments, cwd=place, env=env)
    shutil.rmtree(place)


def main(names: list[str]) -> None:
    unknown = sorted(set(names) - set(CHECKS))
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    with tempfile.TemporaryDirectory(prefix="shoal-wheels-") as scratch:
        here = Path(scratch)
        wheels = here / "wheels"
        wheels.mkdir()
        ours = build(wheels, here / "source")
        for name in names or list(CHECKS):
            check(name, here, ours)
    print("wheels: built, each installed alone, and its example ran from it")


if __name__ == "__main__":
    main(sys.argv[1:])
