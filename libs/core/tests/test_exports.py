"""What `import shoal` gives, and what it costs."""

import subprocess
import sys

import pytest
import shoal

PUBLIC = {
    "ActorClassID", "ActorID", "DynamicObjectRefGenerator", "FunctionID", "JobID", "LoggingConfig", "NodeID", "ObjectID", "ObjectRef", "ObjectRefGenerator",
    "PlacementGroupID", "SCRIPT_MODE", "TaskID", "UniqueID", "WORKER_MODE", "WorkerID", "__version__", "available_resources", "cancel", "cluster_resources",
    "get", "get_actor", "get_gpu_ids", "get_runtime_context", "init", "is_initialized", "kill", "method", "nodes", "put", "remote", "shutdown", "timeline",
    "wait",
}  # fmt: skip


def test_the_exports_are_these_and_each_exists():
    assert set(shoal.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(shoal, name) is not None


def test_an_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="no_such_name"):
        shoal.no_such_name  # noqa: B018


def test_submodules_are_reachable_without_importing_them():
    assert shoal.exceptions.RayError and shoal.actor.ActorClass and shoal.runtime_env.RuntimeEnv and shoal.util.ActorPool


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


def test_import_is_cheap_and_brings_neither_grpc_nor_numpy_nor_protobuf():
    loaded = _run("import sys, shoal; print(' '.join(sys.modules))").split()
    assert not {"grpc", "numpy", "google.protobuf", "cloudpickle", "asyncio", "shoal._core.engine"} & set(loaded)


def test_import_takes_less_than_100_ms_of_a_core():
    code = "import time; a = time.process_time(); import shoal; print(time.process_time() - a)"
    assert min(float(_run(code)) for _ in range(3)) < 0.1


def test_a_submodule_does_not_hide_the_function_of_its_name():
    out = _run("from shoal.util.placement_group import PlacementGroup; import shoal; print(callable(shoal.util.placement_group))")
    assert out.strip() == "True"


def test_the_api_is_imported_without_grpc():
    loaded = _run("import sys, shoal, shoal.util; shoal.remote, shoal.util.placement_group; print(' '.join(sys.modules))").split()
    assert not {"grpc", "numpy"} & set(loaded)


def test_packages_of_the_namespace_may_live_elsewhere(tmp_path):
    package = tmp_path / "shoal" / "elsewhere"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("here = True\n")
    out = _run(f"import sys; sys.path.append({str(tmp_path)!r}); import shoal.elsewhere; print(shoal.elsewhere.here)")
    assert out.strip() == "True"
