"""What docs/deploy.md and the example files say exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml
from shoal._launcher.config import read_config


def commands(root: Path) -> list[list[str]]:
    """Every `shoal …` that stands as code in the page, as words."""
    text = (root / "docs/deploy.md").read_text()
    found = re.findall(r"`(shoal [a-z][^`]*)`", text) + re.findall(r"^    (?:kubectl .* -- |docker .* head )?(shoal [a-z].*)$", text, re.MULTILINE)
    return [shlex.split(re.split(r"\s{2,}", line)[0]) for line in found]


def test_every_command_and_option_that_the_page_names_exists(root):
    from shoal._cli import _COMMANDS, cli

    named = commands(root)
    assert len(named) > 10
    for words in named:
        assert words[1] in _COMMANDS, words
        command = cli.get_command(click.Context(cli), words[1])  # type: ignore[attr-defined]
        assert command is not None
        options = {name for option in command.params for name in option.opts if name.startswith("-")}
        assert {word for word in words[2:] if word.startswith("-")} <= options, words


def test_options_that_the_page_gives_to_up_down_and_exec_exist(root):
    from shoal._cli import cli

    context = click.Context(cli)
    found = [cli.get_command(context, command) for command in ("up", "down", "exec", "attach", "start")]  # type: ignore[attr-defined]
    known = {name for command in found for option in command.params for name in option.opts}
    named = set(re.findall(r"`(--[a-z-]+)`", (root / "docs/deploy.md").read_text())) - {"--shm-size"}
    assert named <= known


@pytest.mark.parametrize("name", ["local", "ssh"])
def test_the_example_files_are_valid(root, name):
    assert read_config(root / f"deploy/clusters/{name}.yaml").provider == name


def test_the_values_in_the_page_are_valid(root):
    helm = pytest.importorskip("helm_python")
    (text,) = re.findall(r"```yaml\n(.*?)```", (root / "docs/deploy.md").read_text(), re.DOTALL)
    with helm.Chart.load(root / "deploy/helm/shoal") as chart:
        chart.validate_schema(yaml.safe_load(text))
        assert "demo-shoal-worker-gpu" in chart.render(values=yaml.safe_load(text), name="demo")["shoal/templates/workers.yaml"]


def test_links_lead_somewhere(root):
    for target in re.findall(r"\]\(([^)#]+)\)", (root / "docs/deploy.md").read_text()):
        assert (root / "docs" / target).exists(), target
