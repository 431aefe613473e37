"""Packages for Ray that others wrote, under `shoal.compat.ray`: installs them without Ray into a folder outside the repository and runs them.

    python scripts/foreign.py [name…]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "tests/foreign"
TIMEOUT_S = 600.0
# One program may take so long.
PROGRAM_S = 90.0
# Of raylings: chapters for Kubernetes and for GPUs with vLLM or DeepSpeed; what Shoal does not run, see docs/ray.md; two that need three CPUs.
RAYLINGS_LEFT_OUT = ("14_kuberay", "15_vllm_and_llms", "16_fsdp_and_deepspeed", "cluster04", "perf01", "data_genai02", "serve03", "basics05")


@dataclass(frozen=True)
class Foreign:
    packages: tuple[str, ...]  # with what they need besides Ray and what the development environment has
    program: str = ""  # in tests/foreign; none: the package's own


FOREIGN = {
    "raylings": Foreign(("raylings==0.10.1",)),
    "evotorch": Foreign(("evotorch==0.6.1", "cma", "matplotlib", "contourpy", "cycler", "fonttools", "kiwisolver"), "evotorch_search.py"),
    "modin": Foreign(("modin==0.37.1", "pandas>=2.2,<2.4", "pytz", "tzdata"), "modin_frames.py"),
    "fugue": Foreign(("fugue==0.9.7", "triad==1.0.3", "adagio==0.2.6", "pandas>=2.2,<2.4", "pytz", "tzdata", "six", "duckdb"), "fugue_suites.py"),
    "ray-map": Foreign(("ray-map==1.0.3",), "ray_map_calls.py"),
    "rayorch": Foreign(("rayorch==0.1.1",), "rayorch_pipeline.py"),
    "ray-ease": Foreign(("ray-ease==0.3.2", "tqdm"), "ray_ease_examples.py"),
    "easy-ray-threads": Foreign(("easy-ray-threads==0.1.0",), "easy_ray_threads_errors.py"),
}


def install(packages: tuple[str, ...], folder: Path) -> None:
    uv = [sys.executable, str(ROOT / "scripts/uv.py"), "pip", "install", "--quiet", "--python", sys.executable]
    subprocess.run([*uv, "--no-deps", "--target", str(folder), *packages], check=True, timeout=TIMEOUT_S)


def programs(name: str, folder: Path) -> list[Path]:
    foreign = FOREIGN[name]
    if foreign.program:
        return [PROGRAMS / foreign.program]
    found = sorted((folder / "raylings/solutions").rglob("*.py"))
    return [path for path in found if path.name != "__init__.py" and not any(part in str(path) for part in RAYLINGS_LEFT_OUT)]


def run(path: Path, folder: Path, cwd: Path) -> bool:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}
    limit = TIMEOUT_S if path.parent == PROGRAMS else PROGRAM_S
    try:
        done = subprocess.run([sys.executable, "-m", "shoal.compat.ray", str(path)], cwd=cwd, env=env, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        print(f"FAILED {path.name}: not done after {limit:g} s")
        return False
    if done.returncode:
        print(f"FAILED {path.name}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.returncode == 0


def main() -> None:
    names = sys.argv[1:] or list(FOREIGN)
    if unknown := [name for name in names if name not in FOREIGN]:
        sys.exit(f"{', '.join(unknown)}: not known; there are {', '.join(FOREIGN)}")
    passed = failed = 0
    for name in names:
        with tempfile.TemporaryDirectory(prefix="foreign-") as place:
            folder, cwd = Path(place, "packages"), Path(place, "cwd")
            cwd.mkdir()
            install(FOREIGN[name].packages, folder)
            results = [run(path, folder, cwd) for path in programs(name, folder)]
        print(f"{name}: {sum(results)} of {len(results)}", flush=True)
        passed, failed = passed + sum(results), failed + results.count(False)
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
