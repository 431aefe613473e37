"""What the README, the docstrings and the example say runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import shoal.rl

HERE = Path(__file__).resolve()
MODULES = sorted(found.name for found in pkgutil.walk_packages(shoal.rl.__path__, "shoal.rl."))


def test_the_readmes_example_runs(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    blocks = re.findall(r"```python\n(.*?)```", (HERE.parents[1] / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_examples_run(name) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_example_trains_and_evaluates(tmp_path) -> None:
    program = HERE.parents[3] / "examples" / "rl_ppo_cartpole.py"
    command = [sys.executable, str(program), "--total-timesteps", "2000", "--checkpoint-dir", str(tmp_path / "c")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "20 episodes, mean return" in ran.stdout


def test_importing_the_library_imports_nothing_heavy() -> None:
    names = "('torch', 'gymnasium', 'pandas')"
    program = f"import sys, shoal.rl; from shoal.rl import PPOConfig, DQNConfig, ESConfig; print([name for name in {names} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    for name in shoal.rl.__all__:
        assert getattr(shoal.rl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'TD3'"):
        shoal.rl.TD3  # noqa: B018
