"""The environments of these tests are importable by their name, here and in every worker."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A private one with four CPUs, for a module's tests."""
    import shoal

    before = os.environ.get("PYTHONPATH")
    # Workers unpickle the tests' own classes by name.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [HERE, before]))
    try:
        with shoal.init(address="local", num_cpus=4):
            yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
