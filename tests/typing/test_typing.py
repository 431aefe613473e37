"""What type checkers infer of programs that use Shoal: mypy on the files in cases/, which say what they expect."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).parent / "cases"
ROOT = Path(__file__).parents[2]


def expected(path: Path) -> dict[int, tuple[str, str]]:
    """Line to ("T", revealed type) or ("E", code)."""
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.startswith("#") and (mark := re.search(r"# ([TE]): (.+)$", line)):
            found[number] = (mark[1], mark[2])
    return found


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """File to line to ("T" or "E", text), as mypy says."""
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path_factory.mktemp("cache")), "--follow-imports", "silent"]
    command = [sys.executable, "-m", "mypy", *options, "--no-error-summary", *map(str, sorted(CASES.glob("*.py")))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=CASES)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[str, dict[int, tuple[str, str]]] = {}
    for line in done.stdout.splitlines():
        if match := re.match(r'(?:.*/)?(\w+\.py):(\d+): note: Revealed type is "(.*)"$', line):
            found.setdefault(match[1], {})[int(match[2])] = ("T", match[3])
        elif match := re.match(r"(?:.*/)?(\w+\.py):(\d+): error: .*\[([\w-]+)\]$", line):
            found.setdefault(match[1], {})[int(match[2])] = ("E", match[3])
    return found


@pytest.mark.parametrize("name", sorted(path.name for path in CASES.glob("*.py")))
def test_types_are_inferred_as_the_file_says(told, name):
    # A module's own classes are named by its path, which depends on where mypy begins.
    shown = {line: (kind, re.sub(r"[\w.]*\bactors\.Counter", "actors.Counter", text)) for line, (kind, text) in told.get(name, {}).items()}
    assert shown == expected(CASES / name)
