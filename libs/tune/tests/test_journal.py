"""The journal: what is written comes back exactly, and what a crash leaves is understood."""

import math
from pathlib import Path

import pytest
from shoal.tune.error import JournalError
from shoal.tune.execution.recovery import read_experiment
from shoal.tune.journal import FILE, FORMAT, Journal, decode, encode, parse_line, read_journal
from shoal.tune.trial import Trial

HEADER = {"t": "experiment", "format": FORMAT, "name": "e"}


class Odd:
    def __eq__(self, other):
        return isinstance(other, Odd)

    __hash__ = None  # type: ignore[assignment]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE


def written(path: Path, *entries: dict) -> Path:
    journal = Journal(path)
    for entry in entries:
        journal.append(entry)
    journal.close()
    return path


@pytest.mark.parametrize("value", [1, 1.5, "ä\n", None, True, [1, [2]], {"a": {"b": 1}}, (1, 2), {1: 2}, {"x": (1,), "y": {"z": {3}}}, float("inf"), b"x",
    {"__pickle__": 1}])
def test_values_come_back_with_their_types(value) -> None:
    import json

    back = decode(json.loads(json.dumps(encode(value))))
    assert back == value and type(back) is type(value)


def test_objects_functions_and_nan_come_back() -> None:
    assert decode(encode({"o": Odd()}))["o"] == Odd()
    assert decode(encode({"f": lambda x: x + 1}))["f"](1) == 2
    assert math.isnan(decode(encode(float("nan"))))


def test_what_cannot_be_pickled_is_named() -> None:
    import threading

    with pytest.raises(JournalError, match="lock .* can neither be written as JSON nor pickled"):
        encode({"lock": threading.Lock()})


def test_entries_come_back_in_order(path: Path) -> None:
    entries, good = read_journal(written(path, HEADER, {"t": "start", "id": "a"}))
    assert entries == [HEADER, {"t": "start", "id": "a"}] and good == path.stat().st_size


@pytest.mark.parametrize("cut", range(1, 27))
def test_a_torn_tail_is_cut_away_wherever_it_is_torn(path: Path, cut: int) -> None:
    written(path, HEADER, {"t": "start", "id": "a"})
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    entries, good = read_journal(path)
    assert entries == [HEADER]
    journal = Journal(path, good)
    journal.append({"t": "start", "id": "b"})
    journal.close()
    assert read_journal(path)[0] == [HEADER, {"t": "start", "id": "b"}]


def test_zeros_at_the_end_are_a_torn_tail(path: Path) -> None:
    written(path, HEADER)
    with path.open("ab") as file:
        file.write(bytes(512))
    assert read_journal(path)[0] == [HEADER]


def test_damage_in_the_middle_is_an_error_with_its_line(path: Path) -> None:
    written(path, HEADER, {"t": "start", "id": "a"}, {"t": "start", "id": "b"})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b'"a"', b'"x"') + lines[2])
    with pytest.raises(JournalError, match=r"experiment.journal:2: this line is damaged, and others follow it"):
        read_journal(path)


def test_a_folder_without_a_journal_and_another_format_are_named(path: Path) -> None:
    with pytest.raises(JournalError, match="there is no experiment in"):
        read_journal(path)
    written(path, {**HEADER, "format": 99})
    with pytest.raises(JournalError, match="has format 99; this version reads format 1"):
        read_journal(path)


def test_a_journal_is_not_written_over(path: Path) -> None:
    written(path, HEADER)
    with pytest.raises(JournalError, match="there already is an experiment in"):
        Journal(path)


def test_the_disk_is_waited_for_once_in_a_while_only(path: Path, monkeypatch) -> None:
    import os

    now, synced = [0.0], []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(now[0]))
    journal = Journal(path, clock=lambda: now[0])
    for step in range(100):
        now[0] = step * 0.01
        journal.append({"t": "x"})
        journal.flush()
        assert len(path.read_bytes().splitlines()) == step + 1
    journal.close()
    assert len(synced) == 2


def test_damaged_lines_are_told_from_good_ones() -> None:
    for line in (b"", b"x\n", b"0000000z {}\n", b"00000000 {}\n", b"a3830348 {}"):
        assert parse_line(line) is None
    assert parse_line(b"a3830348 {}\n") is None or parse_line(b"a3830348 {}\n") == {}


def test_an_experiment_is_read_as_it_was(tmp_path: Path) -> None:
    folder = str(tmp_path)
    for name in ("c1", "c2", "copy"):
        (tmp_path / "a" / name).mkdir(parents=True)
    written(
        tmp_path / FILE, {**HEADER, "folder": folder}, {"t": "trial", "id": "a", "n": 0, "config": {"x": (1, 2)}, "path": f"{folder}/a", "params": {"x": (1,
            2)}},
        {"t": "start", "id": "a"}, {"t": "result", "id": "a", "result": {"loss": 3.0, "training_iteration": 1}}, {"t": "ckpt", "id": "a",
            "path": f"{folder}/a/c1", "i": 0},
        {"t": "result", "id": "a", "result": {"loss": 1.0, "training_iteration": 2}}, {"t": "ckpt", "id": "a", "path": f"{folder}/a/c2", "i": 1},
        {"t": "drop", "id": "a", "path": f"{folder}/a/c1"}, {"t": "fail", "id": "a", "text": "oh"}, {"t": "config", "id": "a", "config": {"x": 9}},
        {"t": "ckpt", "id": "a", "path": f"{folder}/a/gone", "i": 2, "result": {"training_iteration": 7}},
        {"t": "trial", "id": "b", "n": 1, "config": {}, "path": f"{folder}/b", "params": {}}, {"t": "end", "id": "b", "status": "ERROR", "text": "bad"},
    )  # fmt: skip
    found = read_experiment(tmp_path)
    first, second = found.trials.values()
    assert found.suggested == 2 and first.status == Trial.PENDING and first.config == {"x": 9} and first.num_failures == 1
    assert first.evaluated_params == {"x": (1, 2)}
    assert [(one.path, one.progress) for one in first.checkpoints] == [(f"{folder}/a/c2", {"training_iteration": 2})] and first.checkpoint_count == 3
    assert first.metric_analysis["loss"]["max"] == 3.0 and first.last_result["config"] == {"x": (1, 2)}
    assert second.status == Trial.ERROR and str(second.error) == "bad"


def test_a_folder_that_was_moved_is_read_with_its_new_paths(tmp_path: Path) -> None:
    (tmp_path / "a" / "c").mkdir(parents=True)
    written(tmp_path / FILE, {**HEADER, "folder": "/before/e"}, {"t": "trial", "id": "a", "n": 0, "config": {}, "path": "/before/e/a", "params": {}},
            {"t": "ckpt", "id": "a", "path": "/before/e/a/c", "i": 0, "result": {}})  # fmt: skip
    trial = read_experiment(tmp_path).trials["a"]
    assert trial.path == str(tmp_path / "a") and trial.checkpoints[0].path == str(tmp_path / "a" / "c")
