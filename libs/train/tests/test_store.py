"""The run's folder: what is committed, what is rolled back, what stays."""

import json
import os
import subprocess
import sys

import pytest
from pyarrow import fs
from shoal.train import CheckpointConfig, Result, StorageError
from shoal.train._run.checkpoints import Entry, metric_of, to_delete
from shoal.train._run.manifest import Manifest, plain
from shoal.train._run.store import RunStore, staging_folder
from shoal.train.storage import LocalFolder, RemoteFolder


@pytest.fixture(params=["local", "remote"])
def folder(request, tmp_path):
    if request.param == "local":
        return LocalFolder(tmp_path / "run")
    return RemoteFolder(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "run")


def opened(folder, **config):
    return RunStore(folder, "run", CheckpointConfig(**config))


def staged(store, text="x", name=None):
    target = staging_folder(store.folder, store.staging, store.manifest.next_number, name)
    target.make()
    target.write("file", text.encode())


def record(store, metrics, name=None):
    staged(store, str(metrics), name)
    return store.record(metrics, True, name)[0]


def visible(folder):
    return [name for name in folder.names() if not name.startswith(".")]


def test_a_run_is_found_again(folder):
    store = opened(folder)
    store.record({"i": 0}, False, None)
    record(store, {"i": 1})
    store.finish(None)
    assert visible(folder) == ["checkpoint_000000", "progress.jsonl", "run.json"]
    again = opened(folder)
    assert again.history == [{"i": 0}, {"i": 1}]
    assert again.latest.path.endswith("checkpoint_000000")
    assert again.latest.folder.read("file") == b"{'i': 1}"
    assert record(again, {"i": 2}).checkpoint.path.endswith("checkpoint_000001")
    again.close()


def test_what_came_after_the_last_checkpoint_is_forgotten_when_it_will_be_done_again(folder):
    store = opened(folder)
    record(store, {"i": 0})
    store.record({"i": 1}, False, None)
    staged(store)
    store.close()
    again = opened(folder)
    assert again.history == [{"i": 0}]
    assert again.metrics == {"i": 0}
    assert visible(folder) == ["checkpoint_000000", "progress.jsonl", "run.json"]
    assert ".incoming" not in folder.names()
    again.close()


def test_a_crash_between_the_files_and_the_manifest_leaves_the_previous_checkpoint(folder, monkeypatch):
    store = opened(folder)
    record(store, {"i": 0})

    def crash(self, folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", crash)
        with pytest.raises(KeyboardInterrupt):
            record(store, {"i": 1})
    store.close()
    assert "checkpoint_000001" in folder.names()  # in place, and yet it does not count
    again = opened(folder)
    assert again.latest.path.endswith("checkpoint_000000")
    assert "checkpoint_000001" not in folder.names()
    again.close()


def test_the_best_checkpoints_and_the_latest_stay(folder):
    store = opened(folder, num_to_keep=2, checkpoint_score_attribute="eval/score")
    for score in (1, 5, 3, 4, 2):
        record(store, {"eval": {"score": score}})
    assert [metrics["eval"]["score"] for metrics in (kept.metrics for kept in store.kept())] == [5, 4, 2]
    assert [name for name in visible(folder) if name.startswith("checkpoint_")] == ["checkpoint_000001", "checkpoint_000003", "checkpoint_000004"]
    store.close()


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"num_to_keep": 2}, [2, 3]),
        ({"num_to_keep": 1, "checkpoint_score_attribute": "a"}, [1, 3]),
        ({"num_to_keep": 1, "checkpoint_score_attribute": "a", "checkpoint_score_order": "min"}, [0, 3]),
        ({"num_to_keep": 3, "checkpoint_score_attribute": "a"}, [0, 1, 3]),
    ],
)
def test_which_checkpoints_stay(config, kept):
    entries = [Entry(str(i), i, {"a": value}, i + 1) for i, value in enumerate([1, 9, float("nan"), 3])]
    gone = {entry.number for entry in to_delete(entries, CheckpointConfig(**config))}
    assert [i for i in range(4) if i not in gone] == kept


def test_a_name_given_by_the_user_is_used_once(folder):
    store = opened(folder)
    assert record(store, {"i": 0}, "best").checkpoint.path.endswith("best")
    with pytest.raises(ValueError, match="'best' is the name of an earlier checkpoint"):
        store.record({"i": 1}, True, "best")
    store.close()


def test_the_result_of_a_run_is_read_from_its_folder(folder):
    store = opened(folder)
    record(store, {"i": 0, "deep": {"er": 1}})
    record(store, {"i": 1, "deep": {"er": 0}})
    store.finish(None)
    result = Result.from_path(folder.path, folder.filesystem)
    assert result.metrics == {"i": 1, "deep": {"er": 0}}
    assert result.checkpoint.path.endswith("checkpoint_000001")
    assert list(result.metrics_dataframe.columns) == ["i", "deep/er"]
    assert result.get_best_checkpoint("deep/er", "max").path.endswith("checkpoint_000000")
    assert result.get_best_checkpoint("i", "max").path.endswith("checkpoint_000001")
    with pytest.raises(KeyError, match="loss.*deep, i"):
        result.get_best_checkpoint("loss", "min")
    with pytest.raises(ValueError, match="mode='best'"):
        result.get_best_checkpoint("i", "best")


def test_a_failed_run_tells_its_error_from_its_folder(folder):
    store = opened(folder)
    store.finish(RuntimeError("rank 1 failed"))
    result = Result.from_path(folder.path, folder.filesystem)
    assert "rank 1 failed" in str(result.error)
    assert result.metrics is None
    assert result.metrics_dataframe is None
    assert result.checkpoint is None


def test_a_folder_without_a_run_and_a_corrupt_record_are_named(tmp_path):
    with pytest.raises(StorageError, match="run.json"):
        Result.from_path(tmp_path)
    for text in ("{", "{}", json.dumps({"format": 99})):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(StorageError, match=r"run\.json cannot be read"):
            opened(LocalFolder(tmp_path))


def test_a_line_of_metrics_that_a_kill_cut_does_not_count(tmp_path):
    folder = LocalFolder(tmp_path)
    store = opened(folder)
    store.record({"i": 0}, False, None)
    store.close()
    with (tmp_path / "progress.jsonl").open("ab") as file:
        file.write(b'{"i": ')
    assert Result.from_path(tmp_path).metrics == {"i": 0}


def test_one_folder_has_one_run_at_a_time(tmp_path):
    store = opened(LocalFolder(tmp_path / "run"))
    code = (
        "import sys; from shoal.train._run.store import RunStore; from shoal.train.storage import LocalFolder; from shoal.train import CheckpointConfig\n"
        "RunStore(LocalFolder(sys.argv[1]), 'run', CheckpointConfig())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert f"another process (process {os.getpid()}) carries out run 'run'" in refused.stderr
    store.close()
    assert subprocess.run(command, capture_output=True, text=True, timeout=60).returncode == 0


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/run cannot be used"):
        opened(LocalFolder(tmp_path / "file" / "run"))


def test_metrics_are_stored_as_json_says_them():
    import numpy as np

    assert plain({"a": np.float32(0.5), "b": np.arange(2), "c": {1}, "d": len, "e": (1, 2)}) == {
        "a": 0.5, "b": [0, 1], "c": [1], "d": str(len), "e": [1, 2],
    }  # fmt: skip
    assert metric_of({"a/b": 1, "a": {"b": 2}}, "a/b") == 1
    assert metric_of({"a": "text"}, "a") is None
