"""Builds every package's wheel, installs the core from them alone into a clean environment outside the repository, and runs the quickstart there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["libs/base", "services/objectstore", "services/gcs", "services/raylet", "libs/core"]
UV = (Path(sys.executable), ROOT / "scripts/uv.py")
TIMEOUT_S = 600


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> None:
    print("$", *(Path(part).name if isinstance(part, Path) else part for part in command), flush=True)
    subprocess.run([str(part) for part in command], cwd=cwd, env=env, check=True, timeout=TIMEOUT_S)


def build(wheels: Path, copies: Path) -> None:
    """From copies: what the working tree has built already must not slip into a wheel."""
    unwanted = shutil.ignore_patterns("*.so", "*.c", "*.cpp", "*_pb2*", "build", "*.egg-info", "__pycache__", "tests")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copies / package, ignore=unwanted)
    for package in PACKAGES:
        # --find-links: the core is built against the store's header, which it takes from the wheel built before it.
        run(
            *UV, "build", "--quiet", "--wheel", "--no-sources", "--find-links", wheels, "--build-constraint", ROOT / "constraints-build.txt",
            "--out-dir", wheels, copies / package, cwd=copies,
        )  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="shoal-wheels-") as scratch:
        here = Path(scratch)
        wheels = here / "wheels"
        wheels.mkdir()
        build(wheels, here / "source")
        names = sorted(path.name for path in wheels.glob("*.whl"))
        assert len(names) == len(PACKAGES), f"{len(PACKAGES)} wheels were to be built, there are {names}"
        run(sys.executable, "-m", "venv", here / "clean", cwd=here)
        python = here / "clean/bin/python"
        run(
            *UV, "pip", "install", "--quiet", "--python", python, "--constraint", ROOT / "constraints.txt", "--find-links", wheels, "shoal-core", cwd=here,
        )  # fmt: skip
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        shutil.copy(ROOT / "examples/quickstart.py", here / "quickstart.py")
        run(python, "quickstart.py", cwd=here, env=env)
        run(here / "clean/bin/shoal", "version", cwd=here, env=env)
    print("wheels: built, installed alone, and the quickstart ran from them")


if __name__ == "__main__":
    main()
