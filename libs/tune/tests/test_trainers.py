"""Trainers of shoal.train inside of trials."""

from __future__ import annotations

import sys

import cloudpickle
import pytest
import shoal
from shoal import tune
from shoal.tune.integration.ray_train import TuneReportCallback as SameCallback
from shoal.tune.integration.shoal_train import TuneReportCallback

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("cluster")
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def loop(config: dict) -> None:
    import torch
    from shoal import train

    value = torch.tensor([config["x"]], requires_grad=True)
    for _ in range(3):
        (value**2).sum().backward()
        with torch.no_grad():
            value -= config["lr"] * value.grad
            value.grad.zero_()
        train.report({"loss": float(value**2)})


def test_a_torch_trainer_runs_inside_of_a_trial_and_its_reports_are_the_trials(tmp_path) -> None:
    def trial(config):
        from shoal.train import RunConfig, ScalingConfig
        from shoal.train.torch import TorchTrainer

        run_config = RunConfig(name=tune.get_context().get_trial_id(), storage_path=str(tmp_path / "train"), callbacks=[TuneReportCallback()])
        TorchTrainer(loop, train_loop_config=config, scaling_config=ScalingConfig(num_workers=1), run_config=run_config).fit()

    results = tune.Tuner(
        trial, param_space={"x": 2.0, "lr": tune.grid_search([0.0, 0.5])}, tune_config=tune.TuneConfig(metric="loss", mode="min", max_concurrent_trials=2),
        run_config=tune.RunConfig(storage_path=str(tmp_path), name="exp", verbose=0),
    ).fit()  # fmt: skip
    assert not results.errors and [result.metrics["loss"] for result in results] == [4.0, 0.0]
    assert [result.metrics["training_iteration"] for result in results] == [3, 3] and results.get_best_result().config["lr"] == 0.5


def test_a_trainer_is_stopped_with_its_trial(tmp_path, wait_until) -> None:
    def forever(config):
        from shoal import train

        while True:
            train.report({"loss": 1.0})

    def trial(config):
        from shoal.train import DataParallelTrainer, RunConfig, ScalingConfig

        run_config = RunConfig(name=tune.get_context().get_trial_id(), storage_path=str(tmp_path / "train"), callbacks=[TuneReportCallback()])
        DataParallelTrainer(forever, scaling_config=ScalingConfig(num_workers=1), run_config=run_config).fit()

    results = tune.Tuner(trial, run_config=tune.RunConfig(storage_path=str(tmp_path), name="exp", verbose=0, stop={"training_iteration": 3})).fit()
    assert not results.errors and results[0].metrics["training_iteration"] == 3
    wait_until(lambda: shoal.available_resources().get("CPU") == 4, what="the trainer's workers are gone")


def test_the_callback_wants_a_trial() -> None:
    assert SameCallback is TuneReportCallback
    with pytest.raises(Exception, match=r"TuneReportCallback\(\) works only inside of a training function"):
        TuneReportCallback()
