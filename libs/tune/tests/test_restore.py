"""Experiments that are broken off, by Ctrl-C, by SIGKILL of the driver, or by failures, and taken up again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cloudpickle
import pytest
from shoal import tune
from shoal.tune.schedulers import ASHAScheduler, PopulationBasedTraining
from shoal.tune.search.optuna import OptunaSearch

pytestmark = pytest.mark.usefixtures("cluster")
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def marked(config: dict) -> None:
    """Leaves a mark for each start, so that a test can count them."""
    folder = Path(tune.get_context().get_trial_dir())
    starts = folder / "starts"
    starts.write_text((starts.read_text() if starts.exists() else "") + "x")
    checkpoint = tune.get_checkpoint()
    first = int(Path(checkpoint.path, "step").read_text()) + 1 if checkpoint else 0
    for step in range(first, config.get("steps", 3)):
        if step == 2 and config.get("wait") and not Path(config["wait"]).exists():
            time.sleep(600)
        scratch = folder / "scratch"
        scratch.mkdir(exist_ok=True)
        (scratch / "step").write_text(str(step))
        tune.report({"step": step, "loss": config["x"]}, checkpoint=tune.Checkpoint.from_directory(scratch))
        if config.get("fail") == step and not (folder / "mended").exists():
            raise ValueError("broken")


def starts(folder: Path) -> dict[str, int]:
    return {path.parent.name.split("_")[2]: len(path.read_text()) for path in sorted(folder.glob("*/starts"))}


@pytest.fixture
def run_config(tmp_path):
    return lambda **more: tune.RunConfig(storage_path=str(tmp_path), name="exp", verbose=0, **more)


def test_ctrl_c_ends_with_what_there_is_and_a_restore_goes_on(run_config, tmp_path, wait_until, monkeypatch) -> None:
    monkeypatch.setattr("shoal.tune.execution.runners.BUSY_GRACE_S", 0.2)
    go, folder = tmp_path / "go", tmp_path / "exp"

    def interrupt() -> None:
        wait_until(lambda: len(list(folder.glob("*/checkpoint_000001"))) >= 2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    tuner = tune.Tuner(marked, param_space={"x": tune.grid_search([1, 2, 3]), "wait": str(go)}, tune_config=tune.TuneConfig(max_concurrent_trials=2),
                       run_config=run_config())  # fmt: skip
    results = tuner.fit()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert len(results) == 2 and results.num_terminated == 0 and [result.metrics["step"] for result in results] == [1, 1]
    go.touch()
    assert tune.Tuner.can_restore(folder) and not tune.Tuner.can_restore(tmp_path)
    results = tune.Tuner.restore(str(folder), marked).fit()
    assert results.num_terminated == 3 and [result.metrics["step"] for result in results] == [2, 2, 2]
    assert starts(folder) == {"00000": 2, "00001": 2, "00002": 1}
    assert [result.metrics["training_iteration"] for result in results] == [3, 3, 3]


DRIVER = """
import os, sys, time
from pathlib import Path
import shoal
from shoal import tune

def train(config):
    folder = Path(tune.get_context().get_trial_dir())
    (folder / "starts").open("a").write("x")
    checkpoint = tune.get_checkpoint()
    first = int(Path(checkpoint.path, "step").read_text()) + 1 if checkpoint else 0
    for step in range(first, 4):
        scratch = folder / "scratch"
        scratch.mkdir(exist_ok=True)
        (scratch / "step").write_text(str(step))
        tune.report({"loss": config["x"] + step}, checkpoint=tune.Checkpoint.from_directory(scratch))
        if config["n"] >= 4 and step == 1 and not Path(config["go"]).exists():
            time.sleep(600)

if __name__ == "__main__":
    from shoal.tune.search.optuna import OptunaSearch
    shoal.init("local", num_cpus=2, log_to_driver=False, include_dashboard=False)
    config = tune.TuneConfig(metric="loss", mode="min", num_samples=8, search_alg=OptunaSearch(seed=3), max_concurrent_trials=2)
    if sys.argv[1] == "fit":
        space = {"x": tune.uniform(0, 1), "n": tune.randint(0, 8), "go": sys.argv[2] + "/go"}
        tuner = tune.Tuner(train, param_space=space, tune_config=config, run_config=tune.RunConfig(storage_path=sys.argv[2], name="exp", verbose=0))
    else:
        tuner = tune.Tuner.restore(sys.argv[2] + "/exp", train)
    results = tuner.fit()
    print("RESULTS", results.num_terminated, results.num_errors, flush=True)
    shoal.shutdown()
"""


def test_a_driver_that_is_killed_is_taken_up_and_finished_trials_do_not_run_again(tmp_path, wait_until) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    folder = tmp_path / "exp"
    driver = subprocess.Popen([sys.executable, str(script), "fit", str(tmp_path)], start_new_session=True)
    try:
        # Two trials hang; all that came before have ended.
        wait_until(lambda: folder.exists() and hanging(folder) == 2)
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait(30)
    before = tune.load_results(folder)
    ended = {result.path: len(Path(result.path, "starts").read_text()) for result in before if result.metrics.get("done")}
    assert before.num_terminated == len(ended) < 8
    (tmp_path / "go").touch()
    done = subprocess.run([sys.executable, str(script), "restore", str(tmp_path)], capture_output=True, text=True, timeout=100, check=False)
    assert "RESULTS 8 0" in done.stdout, done.stdout + done.stderr
    after = tune.load_results(folder)
    assert len(after) == 8 and all(len(Path(path, "starts").read_text()) == 1 for path in ended)
    assert sum(len(Path(result.path, "starts").read_text()) == 2 for result in after) == 2
    for result in after:
        assert result.metrics["training_iteration"] == 4 and [row["training_iteration"] for row in result.history] == [1, 2, 3, 4]


def hanging(folder: Path) -> int:
    """How many trials of at least two reports have not ended, and wait."""
    try:
        found = tune.load_results(folder)
    except tune.JournalError:
        return 0
    return sum(trial.status == "RUNNING" and trial.last_result.get("training_iteration") == 2 and trial.config["n"] >= 4 for trial in found._trials)


def test_errored_trials_are_left_resumed_or_restarted(run_config, tmp_path) -> None:
    folder = tmp_path / "exp"
    tuner = tune.Tuner(marked, param_space={"x": tune.grid_search([1, 2]), "fail": tune.sample_from(lambda c: 1 if c["x"] == 2 else None)},
        run_config=run_config())
    failed = next(result for result in tuner.fit() if result.error)
    assert isinstance(failed.error, ValueError)
    again = tune.Tuner.restore(folder, marked).get_results()
    assert again.num_errors == 1 and isinstance(again.errors[0], ValueError) and "broken" in str(again.errors[0])
    assert tune.Tuner.restore(folder, marked).fit().num_errors == 1 and starts(folder) == {"00000": 1, "00001": 1}
    (Path(failed.path) / "mended").touch()
    results = tune.Tuner.restore(folder, marked, resume_errored=True).fit()
    assert results.num_errors == 0 and starts(folder) == {"00000": 1, "00001": 2}
    assert [row["step"] for row in results[1].history] == [0, 1, 2]
    (Path(failed.path) / "mended").unlink()


def test_a_restart_begins_anew(run_config, tmp_path) -> None:
    results = tune.Tuner(marked, param_space={"x": 1, "fail": 1}, run_config=run_config()).fit()
    (Path(results[0].path) / "mended").touch()
    results = tune.Tuner.restore(tmp_path / "exp", marked, restart_errored=True).fit()
    assert not results.errors and [row["step"] for row in results[0].history] == [0, 1, 0, 1, 2] and results[0].metrics["training_iteration"] == 3


@pytest.mark.parametrize("scheduler", [
    ASHAScheduler(max_t=3, grace_period=1, reduction_factor=2), PopulationBasedTraining("training_iteration", perturbation_interval=2,
        hyperparam_mutations={"x": [1, 2]}),
])  # fmt: skip
@pytest.mark.parametrize("snapshot", [True, False])
def test_searcher_and_scheduler_know_after_a_restore_what_was_before(run_config, tmp_path, scheduler, snapshot: bool) -> None:
    config = tune.TuneConfig(metric="loss", mode="min", num_samples=4, search_alg=OptunaSearch(seed=1), scheduler=scheduler)
    tune.Tuner(marked, param_space={"x": tune.randint(1, 9)}, tune_config=config, run_config=run_config()).fit()
    folder = tmp_path / "exp"
    if not snapshot:
        (folder / "search-state.pkl").unlink()
    tuner = tune.Tuner.restore(folder, marked)
    plan = tuner._plan()
    tuner._experiment(plan).journal.close()
    assert sorted(trial.state.name for trial in plan.searcher._study.trials) == ["COMPLETE"] * 4
    if isinstance(scheduler, ASHAScheduler):
        assert len(plan.scheduler.brackets[0].rungs[-1].values) == 4


def test_a_second_experiment_of_the_same_name_keeps_the_journal_of_the_first(run_config, tmp_path, caplog) -> None:
    for _ in range(2):
        results = tune.Tuner(marked, param_space={"x": 1}, run_config=run_config()).fit()
    assert len(results) == 1 and "its journal is now experiment.journal." in caplog.text
    assert len(list((tmp_path / "exp").glob("experiment.journal*"))) == 2


def test_what_is_not_an_experiment_is_not_restored(tmp_path) -> None:
    with pytest.raises(tune.JournalError, match=f"there is no experiment in {tmp_path}"):
        tune.Tuner.restore(tmp_path, marked)
    with pytest.raises(ValueError, match="exclude each other"):
        tune.Tuner.restore(tmp_path, marked, resume_errored=True, restart_errored=True)
    (tmp_path / "experiment.journal").touch()
    (tmp_path / "tuner.pkl").write_bytes(b"no pickle")
    with pytest.raises(tune.JournalError, match=r"tuner.pkl cannot be read"):
        tune.Tuner.restore(tmp_path, marked)


def test_tune_run_resumes_by_name(tmp_path) -> None:
    where = {"storage_path": str(tmp_path), "name": "exp", "verbose": 0}
    tune.run(marked, config={"x": tune.grid_search([1, 2])}, resume="AUTO", **where)
    tune.run(marked, config={"x": tune.grid_search([1, 2])}, resume=True, **where)
    assert starts(tmp_path / "exp") == {"00000": 1, "00001": 1}
    with pytest.raises(tune.JournalError, match="there is no experiment in"):
        tune.run(marked, config={"x": 1}, resume=True, **{**where, "name": "other"})


def test_the_journal_of_a_run_has_a_line_for_each_thing_that_happened(run_config, tmp_path) -> None:
    tune.Tuner(marked, param_space={"x": 1, "steps": 1}, run_config=run_config()).fit()
    lines = [json.loads(line[9:]) for line in (tmp_path / "exp" / "experiment.journal").read_text().splitlines()]
    assert [line["t"] for line in lines] == ["experiment", "trial", "start", "result", "ckpt", "end"]
