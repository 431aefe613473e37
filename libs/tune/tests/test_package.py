"""What users see: the names, the README, the docstrings' examples."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import shoal.tune
from shoal import tune

HERE = Path(__file__).resolve().parents[1]
MODULES = sorted(name for _, name, _ in pkgutil.walk_packages(shoal.tune.__path__, "shoal.tune."))


def test_every_exported_name_is_there_and_comes_from_one_place() -> None:
    assert sorted(tune.__all__) == sorted({*tune._HOME, *tune._FROM_TRAIN})
    for name in tune.__all__:
        assert getattr(tune, name) is not None
    for name in tune._SUBMODULES:
        assert getattr(tune, name).__name__ == f"shoal.tune.{name}"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tune.nothing
    assert set(tune.__all__) <= set(dir(tune))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_importing_is_cheap_and_brings_nothing_heavy() -> None:
    heavy = ("numpy", "pandas", "optuna", "torch", "yaml", "pyarrow")
    code = f"import sys, shoal.tune, shoal.tune.tuner; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_readme_runs(tmp_path: Path) -> None:
    blocks = (HERE / "README.md").read_text().split("```python\n")[1:]
    program = "\n".join(block.split("```")[0] for block in blocks)
    script = tmp_path / "readme.py"
    script.write_text(program)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path,
                          env={**__import__("os").environ, "SHOAL_STORAGE_PATH": str(tmp_path)})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
