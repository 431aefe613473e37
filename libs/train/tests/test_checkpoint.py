"""Checkpoints: folders on disks and elsewhere."""

import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from pyarrow import fs
from shoal.train import Checkpoint, StorageError
from shoal.train.storage import LocalFolder, RemoteFolder, open_folder


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    (folder / "deep").mkdir(parents=True)
    (folder / "a").write_text("1")
    (folder / "deep" / "b").write_text("2")
    return folder


@pytest.fixture
def remote(files):
    """The same files in a filesystem that is not the local one."""
    return Checkpoint("files", filesystem=fs.SubTreeFileSystem(str(files.parent), fs.LocalFileSystem()))


def test_a_local_checkpoint_is_used_in_place(files):
    checkpoint = Checkpoint.from_directory(files)
    with checkpoint.as_directory() as where:
        assert where == str(files)
    assert checkpoint.filesystem == fs.LocalFileSystem()


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_files_are_copied_to_a_folder(kind, files, remote, tmp_path):
    checkpoint = remote if kind == "remote" else Checkpoint.from_directory(files)
    target = tmp_path / "copy"
    assert checkpoint.to_directory(target) == str(target)
    assert (target / "a").read_text() == "1"
    assert (target / "deep" / "b").read_text() == "2"


def test_a_temporary_folder_is_made_when_none_is_named(files, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert Path(Checkpoint(files).to_directory(), "a").read_text() == "1"


def test_a_remote_checkpoint_is_copied_once_and_removed_after_its_last_user(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with remote.as_directory() as first:
        with remote.as_directory() as second:
            assert first == second
            assert Path(second, "deep", "b").read_text() == "2"
        assert Path(first, "a").read_text() == "1"
    assert not os.path.exists(first)
    assert os.listdir(os.path.dirname(first)) == []


def test_another_process_shares_the_copy(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = "import pickle, sys, tempfile; tempfile.tempdir = sys.argv[1]\nwith pickle.loads(bytes.fromhex(sys.argv[2])).as_directory() as where: print(where)"
    with remote.as_directory() as where:
        told = subprocess.run([sys.executable, "-c", code, str(tmp_path), pickle.dumps(remote).hex()], capture_output=True, text=True, timeout=60, check=True)
        assert told.stdout.strip() == where
        assert Path(where, "a").exists()


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_metadata_is_set_and_updated(kind, files, remote):
    checkpoint = remote if kind == "remote" else Checkpoint(str(files))
    assert checkpoint.get_metadata() == {}
    checkpoint.set_metadata({"a": 1, "b": 2})
    checkpoint.update_metadata({"b": 3})
    assert checkpoint.get_metadata() == {"a": 1, "b": 3}


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_a_checkpoint_travels(kind, files, remote):
    checkpoint = remote if kind == "remote" else Checkpoint(files)
    there = pickle.loads(pickle.dumps(checkpoint))
    assert there == checkpoint
    assert hash(there) == hash(checkpoint)
    assert there.get_metadata() == {}


def test_a_missing_checkpoint_is_named(tmp_path):
    missing = Checkpoint(tmp_path / "gone")
    with pytest.raises(StorageError, match="no checkpoint at .*gone"), missing.as_directory():
        pass
    with pytest.raises(StorageError, match="gone"):
        missing.to_directory(tmp_path / "copy")


def test_paths_and_uris_of_files_are_the_same_place(files):
    assert Checkpoint(f"file://{files}") == Checkpoint(files)


def test_fsspec_finds_what_pyarrow_does_not():
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/run/checkpoint/a", b"1")
    checkpoint = Checkpoint("memory://run/checkpoint")
    with checkpoint.as_directory() as where:
        assert Path(where, "a").read_bytes() == b"1"
    assert Checkpoint("/run/checkpoint", filesystem=memory).get_metadata() == {}


def test_an_unknown_scheme_is_an_error_that_tells_both_answers():
    with pytest.raises(StorageError, match=r"nowhere://x.*pyarrow.*fsspec"):
        Checkpoint("nowhere://x")
    with pytest.raises(StorageError, match="no filesystem of pyarrow or fsspec"):
        open_folder("x", filesystem=object())


@pytest.mark.parametrize("kind", [LocalFolder, RemoteFolder])
def test_folders_of_all_kinds_behave_the_same(kind, tmp_path, files):
    folder = LocalFolder(tmp_path / "f") if kind is LocalFolder else RemoteFolder(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "f")
    assert not folder.exists()
    assert folder.names() == []
    assert folder.read("x") is None
    folder.delete()
    folder.make()
    folder.write("x", b"1")
    folder.write("x", b"2")
    assert folder.read("x") == b"2"
    folder.child("sub").upload(files)
    assert folder.names() == ["sub", "x"]
    assert folder.child("sub").child("deep").read("b") == b"2"
    folder.child("sub").delete()
    assert not folder.exists("sub")


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    folder = LocalFolder(tmp_path)
    folder.write("x", b"old")

    def fail(*_):
        raise OSError("disk gone")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk gone"):
        folder.write("x", b"new")
    assert folder.read("x") == b"old"
    assert folder.names() == ["x"]
