"""Event files, read back."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shoal import tune
from shoal.tune.logger import TBXLoggerCallback
from shoal.tune.trial import Trial

tensorboardx = pytest.importorskip("tensorboardX")


def events(folder: Path) -> Iterator[Any]:
    """Records of a length, its checksum, an event, and its checksum."""
    from tensorboardX.proto import event_pb2

    for file in sorted(folder.glob("events.out.tfevents.*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            yield event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, value.simple_value) for event in events(folder) for value in event.summary.value if value.tag == f"ray/tune/{name}"]


def train(config: dict[str, Any]) -> None:
    for step in range(3):
        tune.report({"loss": config["x"] / (step + 1), "inner": {"deep": step}, "word": "text", "flag": True, "bad": float("nan")})
    if config["x"] == 2:
        raise ValueError("two")


@pytest.mark.usefixtures("cluster")
def test_every_trial_has_its_numbers_and_its_configuration(tmp_path: Path) -> None:
    run_config = tune.RunConfig(name="tb", storage_path=str(tmp_path), callbacks=[TBXLoggerCallback()], verbose=0)
    results = tune.Tuner(train, param_space={"x": tune.grid_search([1, 2]), "kind": "plain", "layers": [3, 4]}, run_config=run_config).fit()
    assert len(results.errors) == 1
    for result in results:
        folder = Path(result.path)
        x = result.config["x"]
        assert scalars(folder, "loss") == [(1, x), (2, x / 2), (3, pytest.approx(x / 3))]
        assert scalars(folder, "inner/deep") == [(1, 0.0), (2, 1.0), (3, 2.0)]
        tags = {value.tag for event in events(folder) for value in event.summary.value}
        assert not tags & {"ray/tune/word", "ray/tune/flag", "ray/tune/bad", "ray/tune/config/x"}
        assert {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"} <= tags


def test_steps_are_timesteps_where_these_are_counted(tmp_path: Path) -> None:
    logger, trial = TBXLoggerCallback(), Trial("t1", {"lr": 0.1}, trainable_name="train", number=0)
    trial.path = str(tmp_path / "trial")
    logger.log_trial_result(1, trial, {"training_iteration": 1, "timesteps_total": 500, "loss": 1})
    logger.log_trial_result(2, trial, {"training_iteration": 2, "timesteps_total": 900, "loss": 2})
    logger.on_experiment_end([trial])  # broken off: what was reported is there
    assert scalars(tmp_path / "trial", "loss") == [(500, 1.0), (900, 2.0)]


def test_without_tensorboardx_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'shoal-tune\[tensorboard\]'"):
        TBXLoggerCallback()
