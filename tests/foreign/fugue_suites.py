"""Fugue's own conformance suites, as its wheel ships them, on its Ray engine. Needs pytest; `python -m shoal.compat.ray fugue_suites.py`."""

import sys

import fugue.test as ft
import fugue_ray.tester  # noqa: F401 (makes the back end "ray" known)
import pytest
from fugue_ray.dataframe import RayDataFrame
from fugue_test.builtin_suite import BuiltInTests
from fugue_test.dataframe_suite import DataFrameTests
from fugue_test.execution_suite import ExecutionEngineTests

# Two want the extra fugue[sql], one another number of CPUs, one an RPC server over HTTP; what is left is told in docs/ray.md.
LEFT_OUT = ("test_sql_api", "test_any_column_name", "test_get_parallelism", "test_callback", "test_datetime_in_workflow", "test_io")


@ft.fugue_test_suite("ray", mark_test=True)
class TestRayDataFrame(DataFrameTests.Tests):
    def df(self, data=None, schema=None):
        return RayDataFrame(data, schema)


@ft.fugue_test_suite("ray", mark_test=True)
class TestRayEngine(ExecutionEngineTests.Tests):
    pass


@ft.fugue_test_suite("ray", mark_test=True)
class TestBuiltIn(BuiltInTests.Tests):
    pass


if __name__ == "__main__":
    wanted = " and ".join(f"not {name}" for name in LEFT_OUT)
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:warnings", "-o", "fugue_test_conf=fugue.test:bool=true", "-k", wanted]
    sys.exit(pytest.main([__file__, *options]))
