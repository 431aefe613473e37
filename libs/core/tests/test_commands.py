"""The command `shoal` itself: its own sub-commands, and those that libraries bring."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
from shoal._cli import _COMMANDS, cli


@pytest.mark.parametrize("name", sorted(_COMMANDS))
def test_every_command_has_a_help_text(name):
    command = cli.get_command(click.Context(cli), name)
    assert command is not None and command.help and command.name == name


def shoal(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(path)!r}); import shoal._cli; shoal._cli.main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)


def test_a_library_whose_command_cannot_be_imported_breaks_nothing_else(tmp_path):
    info = tmp_path / "broken_lib-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-lib\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[shoal.commands]\nbroken = broken_lib.no_module:command\n")
    listed = shoal("--help", path=tmp_path)
    assert listed.returncode == 0 and "(cannot be loaded)" in listed.stdout and "start" in listed.stdout
    called = shoal("broken", "run", "--fast", path=tmp_path)
    assert called.returncode == 1
    assert called.stderr == (
        "Error: broken_lib.no_module:command of broken-lib cannot be loaded: ModuleNotFoundError: No module named 'broken_lib'\n"
    )
