"""Experiments on a real cluster."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import time
from pathlib import Path

import cloudpickle
import pytest
import shoal
from shoal import tune
from shoal.exceptions import RayTaskError
from shoal.tune.schedulers import ASHAScheduler, PopulationBasedTraining
from shoal.tune.search.optuna import OptunaSearch

pytestmark = pytest.mark.usefixtures("cluster")
# Workers cannot import test modules.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def run_config(tmp_path):
    return lambda **more: tune.RunConfig(storage_path=str(tmp_path), name="exp", verbose=0, **more)


def quadratic(config: dict) -> None:
    for step in range(3):
        tune.report({"loss": (config["x"] - 3) ** 2 + 1 / (step + 1)})


def loss(**more) -> tune.TuneConfig:
    return tune.TuneConfig(metric="loss", mode="min", **more)


# -- functions ---------------------------------------------------------------------------------------------------------


def test_a_function_is_searched_and_all_its_reports_are_kept(run_config) -> None:
    tuner = tune.Tuner(quadratic, param_space={"x": tune.grid_search([1, 2, 3, 4]), "y": tune.uniform(0, 1)}, tune_config=loss(), run_config=run_config())
    results = tuner.fit()
    assert len(results) == 4 and results.num_terminated == 4 and not results.errors
    best = results.get_best_result()
    assert best.config["x"] == 3 and best.metrics["loss"] == pytest.approx(1 / 3) and best.metrics["training_iteration"] == 3
    assert [row["loss"] for row in best.history] == pytest.approx([1, 1 / 2, 1 / 3])
    assert results.get_best_result(scope="all").config["x"] == 3 and tuner.get_results() is results


def test_the_filled_in_keys_are_there(run_config) -> None:
    def train(config):
        tune.report({"loss": 1, "timesteps_this_iter": 5})
        tune.report({"loss": 1, "timesteps_this_iter": 5, "nested": {"a": 1}})

    metrics = tune.Tuner(train, run_config=run_config()).fit()[0].metrics
    assert metrics["timesteps_total"] == 10 and metrics["training_iteration"] == 2 and metrics["done"] is True and metrics["nested"] == {"a": 1}
    assert metrics["pid"] != os.getpid() and metrics["trial_id"].endswith("_00000") and metrics["config"] == {}
    for key in ("time_total_s", "time_this_iter_s", "time_since_restore", "iterations_since_restore", "node_ip", "hostname", "timestamp", "date",
        "experiment_tag"):
        assert metrics[key] is not None


def test_a_returned_dict_is_the_last_report(run_config) -> None:
    results = tune.Tuner(lambda config: {"loss": config["x"]}, param_space={"x": tune.grid_search([2, 1])}, tune_config=loss(), run_config=run_config()).fit()
    assert results.get_best_result().metrics["loss"] == 1


def test_numbers_of_numpy_come_as_numbers(run_config) -> None:
    def train(config):
        import numpy as np

        tune.report({"a": np.float32(1.5), "b": np.float64(2), "c": {"d": np.int64(3)}, "e": np.array(4)})

    metrics = tune.Tuner(train, run_config=run_config()).fit()[0].metrics
    assert [type(value) for value in (metrics["a"], metrics["b"], metrics["c"]["d"], metrics["e"])] == [float, float, int, int]


def test_logs_of_each_trial_lie_in_its_folder(run_config) -> None:
    result = tune.Tuner(quadratic, param_space={"x": tune.choice([5])}, tune_config=loss(), run_config=run_config()).fit()[0]
    folder = Path(result.path)
    assert [json.loads(line)["training_iteration"] for line in (folder / "result.json").read_text().splitlines()] == [1, 2, 3]
    with (folder / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["training_iteration"] for row in rows] == ["1", "2", "3"] and rows[0]["config/x"] == "5"
    assert json.loads((folder / "params.json").read_text()) == {"x": 5} and (folder / "params.pkl").exists()
    assert result.metrics_dataframe["loss"].tolist() == pytest.approx([5, 4.5, 4 + 1 / 3])


def test_the_data_frame_has_a_row_for_each_trial(run_config) -> None:
    results = tune.Tuner(quadratic, param_space={"x": tune.grid_search([1, 3])}, tune_config=loss(), run_config=run_config()).fit()
    frame = results.get_dataframe()
    assert sorted(frame["config/x"]) == [1, 3] and set(frame["training_iteration"]) == {3}
    assert set(results.get_dataframe("loss", "max")["training_iteration"]) == {1}


def test_parameters_are_bound_and_shared(run_config) -> None:
    def train(config, data, scale=1):
        tune.report({"loss": sum(data) * scale + config["x"]})

    bound = tune.with_parameters(train, data=[1, 2, 3])
    results = tune.Tuner(tune.with_parameters(bound, scale=2), param_space={"x": 1}, run_config=run_config()).fit()
    assert results[0].metrics["loss"] == 13
    with pytest.raises(TypeError, match="train has no argument 'dta' beside the configuration; it has data, scale"):
        tune.with_parameters(train, dta=1)


def test_a_trial_gets_the_resources_it_asks_for(run_config) -> None:
    def train(config):
        tune.report({"cpus": shoal.get_runtime_context().get_assigned_resources().get("CPU"),
            "asked": tune.get_context().get_trial_resources().required_resources["CPU"]})

    results = tune.Tuner(tune.with_resources(train, {"cpu": 2}), run_config=run_config()).fit()
    assert results[0].metrics["cpus"] == 2 and results[0].metrics["asked"] == 2
    by_config = tune.with_resources(train, lambda config: {"cpu": config["n"]})
    results = tune.Tuner(by_config, param_space={"n": tune.grid_search([1, 3])}, run_config=run_config()).fit()
    assert sorted(result.metrics["cpus"] for result in results) == [1, 3]


def test_a_placement_group_holds_what_a_trial_starts(run_config) -> None:
    def train(config):
        @shoal.remote(num_cpus=1)
        def where():
            return shoal.get_runtime_context().get_placement_group_id()

        own = shoal.get_runtime_context().get_placement_group_id()
        tune.report({"same": own is not None and shoal.get([where.remote(), where.remote()]) == [own, own]})

    factory = tune.PlacementGroupFactory([{"CPU": 1}, {"CPU": 1}])
    results = tune.Tuner(tune.with_resources(train, factory), tune_config=tune.TuneConfig(num_samples=3), run_config=run_config()).fit()
    assert not results.errors and [result.metrics["same"] for result in results] == [True] * 3


def test_the_context_says_which_trial_it_is(run_config) -> None:
    def train(config):
        context = tune.get_context()
        tune.report({"id": context.get_trial_id(), "name": context.get_trial_name(), "dir": context.get_trial_dir(), "exp": context.get_experiment_name()})

    creator = {"trial_name_creator": lambda trial: f"my-{trial.number}", "trial_dirname_creator": lambda trial: f"dir-{trial.number}"}
    result = tune.Tuner(train, tune_config=tune.TuneConfig(**creator), run_config=run_config()).fit()[0]
    assert result.metrics["name"] == "my-0" and result.metrics["dir"] == result.path and Path(result.path).name == "dir-0" and result.metrics["exp"] == "exp"


def test_train_report_is_the_same_inside_of_a_trial(run_config) -> None:
    def train(config):
        from shoal import train

        train.report({"loss": 4})

    assert tune.Tuner(train, run_config=run_config()).fit()[0].metrics["loss"] == 4


# -- failures ----------------------------------------------------------------------------------------------------------


def fails_at_two(config: dict) -> None:
    tune.report({"loss": 1})
    if config["x"] == 2:
        raise ZeroDivisionError("x was two")


def test_a_trial_that_raises_leaves_its_traceback_and_the_others_go_on(run_config) -> None:
    results = tune.Tuner(fails_at_two, param_space={"x": tune.grid_search([1, 2, 3])}, tune_config=loss(), run_config=run_config()).fit()
    assert results.num_errors == 1 and results.num_terminated == 2
    (error,) = results.errors
    assert isinstance(error, ZeroDivisionError) and isinstance(error, RayTaskError) and 'raise ZeroDivisionError("x was two")' in str(error)
    failed = next(result for result in results if result.error)
    assert "x was two" in (Path(failed.path) / "error.txt").read_text() and (Path(failed.path) / "error.pkl").exists() and failed.metrics["loss"] == 1


def test_a_failed_trial_goes_on_from_its_checkpoint(run_config, tmp_path) -> None:
    def train(config):
        checkpoint = tune.get_checkpoint()
        start = int(Path(checkpoint.path, "step").read_text()) + 1 if checkpoint else 0
        for step in range(start, 4):
            folder = tmp_path / "scratch"
            folder.mkdir(exist_ok=True)
            (folder / "step").write_text(str(step))
            tune.report({"step": step, "start": start}, checkpoint=tune.Checkpoint.from_directory(folder))
            if step == 1 and start == 0:
                raise ValueError("once")

    result = tune.Tuner(train, run_config=run_config(failure_config=tune.FailureConfig(max_failures=1))).fit()[0]
    assert result.error is None and [row["step"] for row in result.history] == [0, 1, 2, 3] and result.metrics["start"] == 2
    assert result.metrics["training_iteration"] == 4 and Path(result.checkpoint.path, "step").read_text() == "3"


def test_a_killed_trial_is_started_again(run_config) -> None:
    def train(config):
        mark = Path(tune.get_context().get_trial_dir(), "killed")
        tune.report({"loss": 1})
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        tune.report({"loss": 0})

    space = {"x": tune.grid_search([1, 2])}
    results = tune.Tuner(train, param_space=space, run_config=run_config(failure_config=tune.FailureConfig(max_failures=2))).fit()
    assert not results.errors and [result.metrics["loss"] for result in results] == [0, 0]


def test_a_killed_trial_without_failures_left_says_that_its_process_is_gone(run_config) -> None:
    results = tune.Tuner(lambda config: os.kill(os.getpid(), signal.SIGKILL), run_config=run_config()).fit()
    assert isinstance(results.errors[0], tune.TrialEndedError)
    assert str(results.errors[0]).startswith("the trial's process is gone")


def test_fail_fast_raises_the_trials_error(run_config) -> None:
    tuner = tune.Tuner(fails_at_two, param_space={"x": tune.grid_search([2, 1])}, run_config=run_config(failure_config=tune.FailureConfig(fail_fast="raise")))
    with pytest.raises(ZeroDivisionError, match="x was two"):
        tuner.fit()


def test_an_unknown_metric_ends_the_experiment_and_names_the_reported_ones(run_config) -> None:
    tuner = tune.Tuner(quadratic, param_space={"x": 1}, tune_config=tune.TuneConfig(metric="accuracy", mode="max"), run_config=run_config())
    with pytest.raises(tune.MissingMetricError, match=r"reported no 'accuracy', which TuneConfig\(metric=...\) needs; it reported: loss"):
        tuner.fit()


def test_a_function_that_exits_with_a_code_has_failed(run_config) -> None:
    def train(config):
        raise SystemExit(3)

    assert "SystemExit(3)" in str(tune.Tuner(train, run_config=run_config()).fit().errors[0])


def test_an_error_that_cannot_be_pickled_still_has_its_text(run_config) -> None:
    def train(config):
        class Odd(Exception):
            def __reduce__(self):
                raise TypeError("no")

        raise Odd("very odd")

    results = tune.Tuner(train, run_config=run_config()).fit()
    assert "very odd" in str(results.errors[0])


# -- what ends a trial -------------------------------------------------------------------------------------------------


def endless(config: dict) -> None:
    step = 0
    while True:
        step += 1
        tune.report({"loss": config.get("x", 1) / step, "n": {"steps": step}})


@pytest.mark.parametrize("stop", [{"training_iteration": 4}, {"n/steps": 4}, lambda trial_id, result: result["training_iteration"] >= 4,
    tune.stopper.MaximumIterationStopper(4)])
def test_a_stopper_ends_a_trial_at_its_report(run_config, stop) -> None:
    results = tune.Tuner(endless, tune_config=tune.TuneConfig(num_samples=2), run_config=run_config(stop=stop)).fit()
    assert [result.metrics["training_iteration"] for result in results] == [4, 4] and all(len(result.history) == 4 for result in results)


def test_finally_blocks_run_when_a_trial_is_stopped(run_config) -> None:
    def train(config):
        try:
            endless(config)
        finally:
            Path(tune.get_context().get_trial_dir(), "closed").touch()

    result = tune.Tuner(train, run_config=run_config(stop={"training_iteration": 2})).fit()[0]
    assert Path(result.path, "closed").exists() and result.error is None


def test_the_time_budget_ends_all_even_one_that_never_reports(run_config, monkeypatch) -> None:
    monkeypatch.setattr("shoal.tune.execution.runners.BUSY_GRACE_S", 0.3)

    def train(config):
        tune.report({"loss": 1})
        time.sleep(600 if config["x"] else 0.01)
        endless(config)

    began = time.monotonic()
    tune_config = loss(time_budget_s=1.0, num_samples=-1, max_concurrent_trials=2)
    results = tune.Tuner(train, param_space={"x": tune.grid_search([0, 1])}, tune_config=tune_config, run_config=run_config()).fit()
    assert time.monotonic() - began < 20 and results.num_terminated == len(results) >= 2 and not results.errors


def test_asha_stops_the_bad_ones(run_config) -> None:
    def train(config):
        for _ in range(20):
            tune.report({"loss": config["x"]})

    scheduler = ASHAScheduler(max_t=9, grace_period=1, reduction_factor=3)
    space = {"x": tune.grid_search([1, 2, 3, 4, 5, 6, 7, 8, 9])}
    results = tune.Tuner(train, param_space=space, tune_config=loss(scheduler=scheduler, max_concurrent_trials=1), run_config=run_config()).fit()
    steps = {result.config["x"]: result.metrics["training_iteration"] for result in results}
    assert steps[1] == 9 and all(steps[x] == 1 for x in range(3, 10))


def test_optuna_suggests_and_learns(run_config) -> None:
    config = loss(search_alg=OptunaSearch(seed=1), num_samples=12, max_concurrent_trials=2)
    results = tune.Tuner(quadratic, param_space={"x": tune.uniform(0, 10), "deep": {"c": 1}}, tune_config=config, run_config=run_config()).fit()
    assert len(results) == 12 and results.get_best_result().metrics["loss"] < 5 and results[0].config["deep"] == {"c": 1}


# -- PBT ---------------------------------------------------------------------------------------------------------------


def test_pbt_copies_the_checkpoint_of_a_better_trial(run_config) -> None:
    def train(config):
        checkpoint = tune.get_checkpoint()
        lineage, score, start = [], 0.0, 0
        if checkpoint:
            state = json.loads(Path(checkpoint.path, "state.json").read_text())
            lineage, score, start = state["lineage"], state["score"], state["step"]
        me = tune.get_context().get_trial_id()
        if not lineage or lineage[-1] != me:
            lineage.append(me)
        for step in range(start + 1, 13):
            score += config["rate"]
            folder = Path(tune.get_context().get_trial_dir(), "scratch")
            folder.mkdir(exist_ok=True)
            (folder / "state.json").write_text(json.dumps({"lineage": lineage, "score": score, "step": step}))
            tune.report({"score": score, "lineage": lineage}, checkpoint=tune.Checkpoint.from_directory(folder))

    # In step, so that it does not matter which of the two is faster.
    scheduler = PopulationBasedTraining(
        "training_iteration", perturbation_interval=3, hyperparam_mutations={"rate": [0.0, 10.0]}, quantile_fraction=0.5, synch=True
    )
    tune_config = tune.TuneConfig(metric="score", mode="max", scheduler=scheduler)
    results = tune.Tuner(train, param_space={"rate": tune.grid_search([0.0, 10.0])}, tune_config=tune_config, run_config=run_config()).fit()
    assert not results.errors
    bad, good = results[0], results[1]
    assert bad.metrics["lineage"][:2] == [good.metrics["trial_id"], bad.metrics["trial_id"]], "the worse trial goes on from the better one's state"
    assert bad.metrics["score"] >= 30
    copied = [one for one, _ in bad.best_checkpoints if json.loads(Path(one.path, "state.json").read_text())["lineage"] == [good.metrics["trial_id"]]]
    assert copied and all(one.path.startswith(bad.path) for one in copied), "the copy lies in the copying trial's own folder"


# -- classes -----------------------------------------------------------------------------------------------------------


class Growing(tune.Trainable):
    def setup(self, config):
        self.x = 0.0

    def step(self):
        self.x += self.config["rate"]
        return {"score": self.x, "pid_": os.getpid(), "done": self.x >= self.config.get("enough", 1e9)}

    def save_checkpoint(self, checkpoint_dir):
        return {"x": self.x}

    def load_checkpoint(self, checkpoint):
        self.x = checkpoint["x"]

    def cleanup(self):
        Path(self.logdir, "cleaned").touch()


class Resettable(Growing):
    def reset_config(self, new_config):
        self.x = 0.0
        self.was_reset = True
        return True

    def step(self):
        return {**super().step(), "reset": getattr(self, "was_reset", False)}


def test_a_class_is_asked_for_steps_saved_and_cleaned_up(run_config) -> None:
    checkpoints = tune.CheckpointConfig(checkpoint_frequency=2, checkpoint_at_end=True, num_to_keep=2)
    result = tune.Tuner(Growing, param_space={"rate": 2}, run_config=run_config(stop={"training_iteration": 5}, checkpoint_config=checkpoints)).fit()[0]
    assert result.metrics["score"] == 10 and len(result.history) == 5 and Path(result.path, "cleaned").exists()
    assert [metrics["training_iteration"] for _, metrics in result.best_checkpoints] == [4, 5]
    restored = Growing({"rate": 1})
    restored.restore(result.checkpoint)
    assert restored.x == 10 and restored.iteration == 5 and restored.train()["score"] == 11
    assert sorted(path.name for path in Path(result.path).glob("checkpoint_*")) == ["checkpoint_000001", "checkpoint_000002"]


def test_a_class_ends_by_done(run_config) -> None:
    results = tune.Tuner(Growing, param_space={"rate": tune.grid_search([1, 2]), "enough": 4}, run_config=run_config()).fit()
    assert [result.metrics["training_iteration"] for result in results] == [4, 2]


def test_reused_actors_run_trial_after_trial(run_config) -> None:
    config = tune.TuneConfig(reuse_actors=True, max_concurrent_trials=1, num_samples=3)
    results = tune.Tuner(Resettable, param_space={"rate": 1}, tune_config=config, run_config=run_config(stop={"training_iteration": 2})).fit()
    assert len({result.metrics["pid_"] for result in results}) == 1 and [result.metrics["reset"] for result in results] == [False, True, True]
    assert [result.metrics["score"] for result in results] == [2, 2, 2]
    results = tune.Tuner(lambda config: {"pid_": os.getpid()}, tune_config=config, run_config=run_config()).fit()
    assert len({result.metrics["pid_"] for result in results}) == 1


def test_pbt_asks_classes_for_checkpoints(run_config) -> None:
    scheduler = PopulationBasedTraining("training_iteration", perturbation_interval=2, hyperparam_mutations={"rate": [0.0, 10.0]}, quantile_fraction=0.5,
        synch=True)
    config = tune.TuneConfig(metric="score", mode="max", scheduler=scheduler)
    results = tune.Tuner(Growing, param_space={"rate": tune.grid_search([0.0, 10.0])}, tune_config=config,
        run_config=run_config(stop={"training_iteration": 8})).fit()
    assert not results.errors and min(result.metrics["score"] for result in results) >= 20


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_callbacks_are_told_everything_in_order(run_config) -> None:
    class Listening(tune.Callback):
        def __init__(self):
            self.told = []

        def setup(self, stop=None, num_samples=None, total_num_samples=None, **info):
            self.told.append(("setup", total_num_samples))

        def on_trial_start(self, iteration, trials, trial, **info):
            self.told.append("start")

        def on_trial_result(self, iteration, trials, trial, result, **info):
            self.told.append(result["loss"])

        def on_trial_complete(self, iteration, trials, trial, **info):
            self.told.append("complete")

        def on_trial_error(self, iteration, trials, trial, **info):
            self.told.append(type(trial.error).__mro__[1].__name__)

        def on_experiment_end(self, trials, **info):
            self.told.append("end")

    listening = Listening()
    config = tune.TuneConfig(max_concurrent_trials=1)
    tune.Tuner(fails_at_two, param_space={"x": tune.grid_search([1, 2])}, tune_config=config, run_config=run_config(callbacks=[listening])).fit()
    assert listening.told[:4] == [("setup", 2), "start", 1, "complete"] and listening.told[4:6] == ["start", 1] and listening.told[-1] == "end"
    assert len(listening.told) == 8


def test_a_callback_that_raises_ends_the_experiment(run_config) -> None:
    class Bad(tune.Callback):
        def on_trial_result(self, iteration, trials, trial, result, **info):
            raise KeyError("bad callback")

    with pytest.raises(KeyError, match="bad callback"):
        tune.Tuner(endless, run_config=run_config(callbacks=[Bad()])).fit()


def test_tune_run_returns_the_analysis(tmp_path) -> None:
    analysis = tune.run(quadratic, config={"x": tune.grid_search([1, 3])}, metric="loss", mode="min", storage_path=str(tmp_path), verbose=0,
        resources_per_trial={"cpu": 2})
    assert analysis.best_config == {"x": 3} and analysis.best_result["loss"] == pytest.approx(1 / 3) and len(analysis.trials) == 2
    assert analysis.best_trial.status == "TERMINATED" and len(analysis.results_df) == 2
    with pytest.raises(tune.TuneError, match="1 of 2 trials failed"):
        tune.run(fails_at_two, config={"x": tune.grid_search([1, 2])}, storage_path=str(tmp_path), verbose=0)


def test_the_same_settings_run_twice_without_traces_of_the_first(run_config) -> None:
    tuner = tune.Tuner(quadratic, param_space={"x": tune.uniform(0, 1)}, tune_config=loss(num_samples=2, search_alg=OptunaSearch(seed=1)),
        run_config=run_config())
    assert len(tuner.fit()) == 2 and len(tuner.fit()) == 2


def test_the_table_says_how_it_stands_and_what_was_best(tmp_path, capsys) -> None:
    config = tune.RunConfig(storage_path=str(tmp_path), name="exp", verbose=2)
    tune.Tuner(fails_at_two, param_space={"x": tune.grid_search([1, 2])}, tune_config=loss(), run_config=config).fit()
    said = capsys.readouterr().out
    assert "experiment exp in" in said and "failed: ZeroDivisionError: x was two" in said and "1 error, 1 terminated; best loss=1" in said
    assert [line.split() for line in said.splitlines() if line.startswith("trial ")] == [["trial", "status", "x", "iter", "time_s", "loss"]]


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda: tune.Tuner(), TypeError, "Tuner needs a trainable"), (lambda: tune.Tuner(3), TypeError, "got int"), (lambda: tune.Tuner(dict), TypeError,
        "no subclass of"),
    (lambda: tune.Tuner(lambda: 1), TypeError, "must take the configuration"), (lambda: tune.Tuner("nobody"), ValueError,
        "no trainable 'nobody' was registered"),
    (lambda: tune.Tuner(quadratic, param_space=[1]), ValueError, "param_space"), (lambda: tune.TuneConfig(num_samples=0), ValueError, "num_samples=0"),
    (lambda: tune.TuneConfig(mode="best"), ValueError, "mode must be"), (lambda: tune.TuneConfig(search_alg="optuna"), ValueError, "search_alg must be"),
    (lambda: tune.TuneConfig(scheduler="asha"), ValueError, "scheduler must be"), (lambda: tune.TuneConfig(time_budget_s=-1), ValueError, "time_budget_s=-1"),
    (lambda: tune.RunConfig(storage_path="s3://bucket/x"), ValueError, "s3://bucket/x"), (lambda: tune.RunConfig(stop=3), ValueError, "stop=3"),
    (lambda: tune.RunConfig(name="a/b"), ValueError, "name='a/b'"), (lambda: tune.FailureConfig(fail_fast="x"), ValueError, "fail_fast='x'"),
    (lambda: tune.with_resources(quadratic, {"cpu": -1}), ValueError, "'cpu' must be a number from 0 on, got -1"),
    (lambda: tune.PlacementGroupFactory([]), ValueError, "at least one bundle"), (lambda: tune.RunConfig(callbacks=[3]), ValueError, "no shoal.tune.Callback"),
    (lambda: tune.Tuner(quadratic, tune_config=tune.TuneConfig(scheduler=ASHAScheduler())).fit(), tune.TuneError,
        "AsyncHyperBandScheduler needs metric and mode"),
    (lambda: tune.report({}), Exception, "only inside of a training function"),
])  # fmt: skip
def test_wrong_settings_are_refused_at_the_call(make, error, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_trial_that_no_node_can_hold_fails_and_names_what_it_needs(run_config) -> None:
    results = tune.Tuner(tune.with_resources(quadratic, {"cpu": 100}), param_space={"x": 1}, run_config=run_config()).fit()
    assert results.num_errors == 1 and "100" in str(results.errors[0]), results.errors


def test_trials_that_wait_for_resources_are_told(run_config, monkeypatch, caplog) -> None:
    monkeypatch.setattr("shoal.tune.execution.experiment._PLACE_AFTER_S", 0.2)
    monkeypatch.setattr("shoal.tune.execution.experiment._PLACE_EVERY_S", 0.5)
    monkeypatch.setattr("shoal.tune.execution.experiment._WAIT_S", 0.1)

    @shoal.remote(num_cpus=4)
    class Holder:
        def hold(self):
            return 1

    holder = Holder.remote()
    shoal.get(holder.hold.remote())

    class Free(tune.Callback):
        def on_step_begin(self, iteration, trials, **info):
            nonlocal holder
            if "wait for resources" in caplog.text:
                holder = None

    results = tune.Tuner(quadratic, param_space={"x": 1}, run_config=run_config(callbacks=[Free()])).fit()
    assert not results.errors
    assert "1 trials wait for resources: quadratic_" in caplog.text and "needs {'CPU': 1}, free are {}" in caplog.text.replace("{'CPU': 0.0}", "{}")


def test_a_place_that_cannot_be_written_is_named() -> None:
    with pytest.raises(tune.TuneError, match="the experiment's folder /proc/nowhere/exp cannot be made"):
        tune.Tuner(quadratic, run_config=tune.RunConfig(storage_path="/proc/nowhere", name="exp")).fit()


def test_a_trainable_that_cannot_be_pickled_is_told_before_anything_runs(run_config, tmp_path) -> None:
    import threading

    lock = threading.Lock()

    def train(config):
        with lock:
            tune.report({"loss": 1})

    with pytest.raises(TypeError, match="lock"):
        tune.Tuner(train, run_config=run_config()).fit()
    assert not (tmp_path / "exp" / "experiment.journal").exists()


def test_parameters_are_bound_to_classes_too(run_config) -> None:
    class Summing(tune.Trainable):
        def setup(self, config, data):
            self.data = data

        def step(self):
            return {"sum": sum(self.data) + self.config["x"], "done": True}

    results = tune.Tuner(tune.with_parameters(tune.with_resources(Summing, {"cpu": 2}), data=[1, 2]), param_space={"x": 4}, run_config=run_config()).fit()
    assert not results.errors and results[0].metrics["sum"] == 7
    with pytest.raises(TypeError, match=r"Summing.setup has no argument 'dta' beside the configuration; it has data"):
        tune.with_parameters(Summing, dta=1)


def test_limited_and_repeated_searches_run_as_they_are(run_config) -> None:
    from shoal.tune.search import BasicVariantGenerator, ConcurrencyLimiter, Repeater

    search = ConcurrencyLimiter(Repeater(BasicVariantGenerator(random_state=1), repeat=2), max_concurrent=2)
    results = tune.Tuner(quadratic, param_space={"x": tune.uniform(0, 9)}, tune_config=loss(search_alg=search, num_samples=4), run_config=run_config()).fit()
    assert [result.config["__trial_index__"] for result in results] == [0, 1, 0, 1] and len({result.config["x"] for result in results}) == 2
