"""What type checkers infer of programs that use Shoal: mypy with its plugin, and pyright, on the files in cases/, which say what they expect.

`# T: type` is what the line reveals, `# E: code` an error that it must have. `# M: type` is what mypy alone reveals, where pyright says Any, and
`# M! code` an error that mypy alone tells.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).parent / "cases"
ROOT = Path(__file__).parents[2]
Told = dict[int, tuple[str, str]]


def expected(path: Path, *, pyright: bool = False) -> Told:
    """Line to ("T", revealed type) or ("E", code)."""
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith("#") or not (mark := re.search(r"# ([TEM])([:!]) (.+)$", line)):
            continue
        mypy_alone, error, text = mark[1] == "M", mark[1] == "E" or mark[2] == "!", mark[3]
        if not (pyright and mypy_alone and error):
            found[number] = ("E" if error else "T", "Any" if pyright and mypy_alone else text)
    return found


def ask_mypy(folder: Path, plugins: str) -> dict[str, Told]:
    configuration = folder / "mypy.toml"
    configuration.write_text((ROOT / "pyproject.toml").read_text().replace("$MYPY_CONFIG_FILE_DIR", str(ROOT)).replace(
        "[tool.mypy]\n", f"[tool.mypy]\nplugins = {plugins}\n"))  # fmt: skip
    options = ["--config-file", str(configuration), "--cache-dir", str(folder / "cache"), "--follow-imports", "silent"]
    command = [sys.executable, "-m", "mypy", *options, "--no-error-summary", *map(str, sorted(CASES.glob("*.py")))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=CASES)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[str, Told] = {}
    for line in done.stdout.splitlines():
        if match := re.match(r'(?:.*/)?(\w+\.py):(\d+): note: Revealed type is "(.*)"$', line):
            found.setdefault(match[1], {})[int(match[2])] = ("T", match[3])
        elif match := re.match(r"(?:.*/)?(\w+\.py):(\d+): error: .*\[([\w-]+)\]$", line):
            found.setdefault(match[1], {})[int(match[2])] = ("E", match[3])
    return found


@pytest.fixture(scope="module")
def told_by_mypy(tmp_path_factory) -> dict[str, Told]:
    return ask_mypy(tmp_path_factory.mktemp("mypy"), '["shoal.mypy_plugin"]')


@pytest.fixture(scope="module")
def told_by_pyright(tmp_path_factory) -> dict[str, Told]:
    settings = tmp_path_factory.mktemp("pyright") / "pyrightconfig.json"
    settings.write_text(json.dumps({"typeCheckingMode": "standard", "pythonVersion": "3.11"}))
    command = [sys.executable, "-m", "basedpyright", "-p", str(settings), "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run([*command, *map(str, sorted(CASES.glob("*.py")))], capture_output=True, text=True, timeout=110)
    found: dict[str, Told] = {}
    for one in json.loads(done.stdout)["generalDiagnostics"]:
        line, lines = one["range"]["start"]["line"] + 1, found.setdefault(Path(one["file"]).name, {})
        if match := re.match(r'Type of ".*" is "(.*)"$', one["message"], re.S):
            lines[line] = ("T", match[1])
        elif one["severity"] == "error":
            lines.setdefault(line, ("E", one["message"]))
    return found


@pytest.mark.parametrize("name", sorted(path.name for path in CASES.glob("*.py")))
def test_mypy_infers_what_the_file_says(told_by_mypy, name):
    # A module's own classes are named by its path, which depends on where mypy begins.
    shown = {line: (kind, re.sub(rf"[\w.]*\b{name[:-3]}\.", f"{name[:-3]}.", text)) for line, (kind, text) in told_by_mypy.get(name, {}).items()}
    assert shown == expected(CASES / name)


@pytest.mark.parametrize("name", sorted(path.name for path in CASES.glob("*.py")))
def test_pyright_infers_what_the_file_says(told_by_pyright, name):
    # It leaves modules out of names, and writes parameters in parentheses.
    wanted = {
        line: ("E", "") if kind == "E" else ("T", re.sub(r"\[\[(.*?)\]", r"[(\1)", re.sub(r"\b[\w.]+\.(\w+)", r"\1", text)))
        for line, (kind, text) in expected(CASES / name, pyright=True).items()
    }
    assert {line: (kind, text if kind == "T" else "") for line, (kind, text) in told_by_pyright.get(name, {}).items()} == wanted


def test_mypy_without_the_plugin_finds_no_errors_where_there_are_none(tmp_path):
    told = ask_mypy(tmp_path, "[]")
    for name in ("actors.py", "tasks.py", "typed_actors.py"):  # of decorated classes it knows nothing
        wanted = {line for line, (kind, _) in expected(CASES / name).items() if kind == "E"}
        assert {line: text for line, (kind, text) in told[name].items() if kind == "E" and line not in wanted} == {}
    assert ("T", "shoal._core.engine.ObjectRef[int]") in told["typed_actors.py"].values()
