"""What the README shows is true."""

import doctest
from pathlib import Path

import pytest
import shoal_raylet.bundles
import shoal_raylet.workers

pytestmark = pytest.mark.timeout(30)


def test_the_readme_runs():
    failed, tried = doctest.testfile(str(Path(__file__).parents[1] / "README.md"), module_relative=False)
    assert tried
    assert not failed


@pytest.mark.parametrize("module", [shoal_raylet.bundles, shoal_raylet.workers])
def test_the_docstrings_run(module):
    failed, tried = doctest.testmod(module)
    assert tried
    assert not failed
