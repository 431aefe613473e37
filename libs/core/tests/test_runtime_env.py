"""Runtime environments: checked, merged, packed."""

import io
import shutil
import zipfile
from pathlib import Path

import pytest
from shoal import _packages
from shoal.runtime_env import RuntimeEnv, RuntimeEnvConfig, canonical, check_runtime_env, expanded, inherited


@pytest.mark.parametrize(("env", "error", "text"), [
    ({"pip": ["x"]}, ValueError, "runtime_env\\['pip'\\] is not supported"),
    ({"env_vars": {"A": 1}}, TypeError, "env_vars'\\]\\['A'\\]"),
    ({"env_vars": {1: "A"}}, TypeError, "keys must be of type str"),
    ({"env_vars": []}, TypeError, None),
    ({"py_modules": "x"}, TypeError, "py_modules"),
    ({"working_dir": 3}, TypeError, "working_dir"),
    ("x", TypeError, "must be dict or RuntimeEnv"),
])  # fmt: skip
def test_a_wrong_environment_is_refused_by_field(env, error, text):
    if text is None:
        assert check_runtime_env(env) == {}
        return
    with pytest.raises(error, match=text):
        check_runtime_env(env)


def test_equal_environments_have_one_text():
    assert canonical({"b": 1, "a": {"y": 1, "x": 2}}) == canonical({"a": {"x": 2, "y": 1}, "b": 1})
    assert canonical({}) == canonical(None) == ""


def test_a_child_inherits_and_overrides():
    parent = canonical({"env_vars": {"A": "1", "B": "1"}, "working_dir": "gcs://p.zip"})
    assert inherited(parent, {"env_vars": {"B": "2"}}) == {"env_vars": {"A": "1", "B": "2"}, "working_dir": "gcs://p.zip"}
    assert inherited("", None) == {}


def test_the_class_is_a_checked_dict():
    env = RuntimeEnv(env_vars={"A": "1"})
    assert env == {"env_vars": {"A": "1"}} and RuntimeEnv.deserialize(env.serialize()) == env
    with pytest.raises(ValueError, match="conda"):
        RuntimeEnv(conda="x")
    with pytest.raises(ValueError, match="setup_timeout_seconds"):
        RuntimeEnvConfig(setup_timeout_seconds=0)


def test_fields_are_read_and_set_one_by_one():
    env = RuntimeEnv(env_vars={"A": "1"}, py_modules=["m"])
    assert (env.working_dir(), env.has_working_dir(), env.py_modules(), env.env_vars()) == ("", False, ["m"], {"A": "1"})
    env.set("working_dir", "d")
    env.set("py_modules", None)
    assert env == {"env_vars": {"A": "1"}, "working_dir": "d"}
    with pytest.raises(ValueError, match="nonsense"):
        env.set("nonsense", 1)
    with pytest.raises(TypeError, match="env_vars"):
        env.set("env_vars", {"A": 2})
    assert env == {"env_vars": {"A": "1"}, "working_dir": "d"}


def _names(data: bytes) -> set[str]:
    return set(zipfile.ZipFile(io.BytesIO(data)).namelist())


def test_a_directory_is_packed_without_what_is_excluded_and_equal_files_make_equal_bytes(tmp_path):
    (tmp_path / "pkg").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("a.py", "pkg/b.py", ".git/config", "big.bin"):
        (tmp_path / name).write_text(name)
    data = _packages._pack(tmp_path, "", ("*.bin",), "working_dir")
    assert _names(data) == {"a.py", "pkg/b.py"}
    assert _packages._pack(tmp_path, "", ("*.bin",), "working_dir") == data
    assert _names(_packages._pack(tmp_path / "pkg", "pkg", (), "py_modules")) == {"pkg/b.py"}


def test_a_zip_file_is_a_working_directory_and_another_file_is_none(tmp_path):
    (tmp_path / "files").mkdir()
    for name in ("data.txt", "big.bin"):
        (tmp_path / "files" / name).write_text(name)
    archive = shutil.make_archive(str(tmp_path / "made"), "zip", tmp_path / "files")
    _packages._unpack(_packages._pack(Path(archive), "", ("*.bin",), "working_dir"), tmp_path / "t")
    assert (tmp_path / "t" / "data.txt").read_text() == "data.txt" and not (tmp_path / "t" / "big.bin").exists()
    with pytest.raises(ValueError, match="a directory or a zip file is wanted"):
        _packages._pack(tmp_path / "files" / "data.txt", "", (), "working_dir")


def test_a_variable_names_others(monkeypatch):
    monkeypatch.setenv("HERE", "/lib")
    assert [expanded(value) for value in ("/a:${HERE}", "$HERE/b", "${NOWHERE_AT_ALL}c", "no $$ at all")] == ["/a:/lib", "/lib/b", "c", "no $$ at all"]


def test_a_directory_that_is_too_large_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(_packages, "MAX_BYTES", 10)
    (tmp_path / "x").write_bytes(bytes(100))
    with pytest.raises(ValueError, match=r"working_dir.*excludes"):
        _packages._pack(tmp_path, "", (), "working_dir")


def test_a_directory_that_is_missing_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="no such directory"):
        _packages.upload({"working_dir": str(tmp_path / "none")})


def test_unpacking_keeps_modes(tmp_path):
    source = tmp_path / "s"
    source.mkdir()
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "run.sh").chmod(0o755)
    _packages._unpack(_packages._pack(source, "", (), "working_dir"), tmp_path / "t")
    assert (tmp_path / "t" / "run.sh").stat().st_mode & 0o777 == 0o755
