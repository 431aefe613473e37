"""Puts the tests' own node on the path; fixtures of several files."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from far_place import Far, folder


@pytest.fixture
def near(tmp_path: Path) -> Far:
    return folder(f"file://{tmp_path}/far", tmp_path / "far")


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A remote file system that failed is asked again soon."""
    monkeypatch.setattr("shoal_objectstore.remote.PAUSE_S", 0.01)
