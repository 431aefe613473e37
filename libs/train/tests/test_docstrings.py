"""The examples in docstrings run."""

import doctest
import importlib

import pytest

MODULES = ["callbacks", "checkpoint", "config", "session", "trainer", "_run.checkpoints", "_run.ranks", "_run.rendezvous"]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(f"shoal.train.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
