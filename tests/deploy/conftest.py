"""What the checks of deploy/ share: where it lies, and what `shoal` really knows."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def start_options() -> dict[str, click.Option]:
    """Every option of `shoal start`, by each of its names."""
    from shoal._cli.start import start_command

    return {name: option for option in start_command.params if isinstance(option, click.Option) for name in option.opts}
