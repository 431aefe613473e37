"""`shoal tune`, as a user calls it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shoal import tune
from shoal.tune.sweep_file import load_sweep
from shoal.util.yaml_config import YamlConfigError

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
SHOAL = [sys.executable, "-m", "shoal._cli"]
if shutil.which("shoal", path=str(Path(sys.executable).parent)):
    SHOAL = [str(Path(sys.executable).parent / "shoal")]


def shoal(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*SHOAL, "tune", *map(str, arguments)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


TRAINABLE = '''
import time
from pathlib import Path

from shoal import tune


def train(config):
    folder = Path(tune.get_context().get_trial_dir())
    with (folder / "starts").open("a") as file:
        file.write("x")
    for step in range(3):
        tune.report({"score": config["x"] * (step + 1)})
    if config["x"] > 2 and "go" in config and not Path(config["go"]).exists():
        time.sleep(600)
    if config.get("bad") == config["x"]:
        raise ValueError("bad x")


class Steps(tune.Trainable):
    def step(self):
        return {"score": self.config["x"], "done": True}
'''


@pytest.fixture
def sweep(tmp_path: Path):
    (tmp_path / "my_train.py").write_text(TRAINABLE)

    def write(text: str) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(text)
        return path

    return write


GRID = """
trainable: my_train.py:train
name: grid
metric: score
mode: max
storage: out
max_concurrent_trials: 2
space:
  x: {type: grid_search, values: [1, 2, 3, 4]}
"""


def test_a_sweep_runs_and_its_results_are_shown(sweep, tmp_path) -> None:
    done = shoal("run", sweep(GRID), "-v")
    assert "experiment grid in" in done.stdout and "4 terminated; best score=12" in done.stdout
    folder = tmp_path / "out" / "grid"
    lines = shoal("results", folder).stdout.splitlines()
    assert lines[0].split() == ["trial", "status", "x", "iter", "time_s", "score"] and len(lines) == 5
    assert [line.split()[-1] for line in lines[1:]] == ["12", "9", "6", "3"]
    best = shoal("best", folder).stdout
    assert "score = 12" in best and "x: 4" in best
    assert json.loads(shoal("best", folder, "--mode", "min", "--json").stdout)["config"] == {"x": 1}
    assert len(json.loads(shoal("results", folder, "--json").stdout)) == 4
    wrong = shoal("best", folder, "--metric", "skore", code=1).stderr
    assert "no best trial found for the metric 'skore': the trials reported" in wrong and "score" in wrong


def test_a_sweep_that_is_killed_is_resumed_and_finished_trials_do_not_run_again(sweep, tmp_path, wait_until) -> None:
    path = sweep(f"{GRID}  go: {tmp_path}/go\n")
    folder = tmp_path / "out" / "grid"
    process = subprocess.Popen([*SHOAL, "tune", "run", str(path)], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: len([line for line in json_lines(folder / "experiment.journal") if line["t"] == "result"]) == 12, what="two ended, two hang")
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
    assert [line["status"] for line in json.loads(shoal("results", folder, "--json").stdout)].count("TERMINATED") == 2
    (tmp_path / "go").touch()
    done = shoal("resume", folder)
    assert "4 terminated; best score=12" in done.stdout
    assert sorted(len(file.read_text()) for file in folder.glob("*/starts")) == [1, 1, 2, 2]


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line[9:]) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")] if path.exists() else []


def test_ctrl_c_says_how_to_go_on(sweep, tmp_path, wait_until) -> None:
    path = sweep(f"{GRID}  go: {tmp_path}/go\n")
    folder = tmp_path / "out" / "grid"
    process = subprocess.Popen([*SHOAL, "tune", "run", str(path)], start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len([line for line in json_lines(folder / "experiment.journal") if line["t"] == "result"]) == 12)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert f"2 trials have not ended; `shoal tune resume {folder}` goes on with them" in err and "2 paused, 2 terminated" in out
    (tmp_path / "go").touch()
    assert "4 terminated" in shoal("resume", folder, "-q").stdout + shoal("results", folder).stdout.replace("TERMINATED", "4 terminated")


def test_failed_trials_are_told_and_can_be_restarted(sweep, tmp_path) -> None:
    done = shoal("run", sweep(f"{GRID}  bad: 2\n"), code=1)
    assert "failed: ValueError: bad x" in done.stdout and "1 of 4 trials failed" in done.stderr
    done = shoal("resume", tmp_path / "out" / "grid", "--errored", "restart", code=1)
    assert sorted(len(file.read_text()) for file in tmp_path.glob("out/grid/*/starts")) == [1, 1, 1, 2]


def test_options_come_before_the_file(sweep, tmp_path) -> None:
    text = "trainable: my_train:Steps\nspace: {x: {type: uniform, lower: 0, upper: 1}}\nsearch: {type: random, seed: 3}\n"
    shoal("run", sweep(text), "--name", "other", "--storage", tmp_path / "there", "--num-samples", 3, "-q")
    assert len(tune.load_results(tmp_path / "there" / "other")) == 3


def test_the_example_sweep_is_killed_and_resumed(tmp_path, wait_until) -> None:
    pytest.importorskip("sklearn")
    folder = tmp_path / "digits"
    command = [*SHOAL, "tune", "run", str(EXAMPLES / "sweep.yaml"), "--storage", str(tmp_path), "--num-samples", "3", "-q"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: any(line["t"] == "end" for line in json_lines(folder / "experiment.journal")), what="a trial has ended")
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
    before = [line["id"] for line in json_lines(folder / "experiment.journal") if line["t"] == "end"]
    shoal("resume", folder, "-q")
    lines = json_lines(folder / "experiment.journal")
    ended = next(index for index, line in enumerate(lines) if line["t"] == "end" and line["id"] == before[-1])
    assert all(line["id"] not in before for line in lines[ended + 1 :] if line["t"] == "start")
    best = json.loads(shoal("best", folder, "--json").stdout)
    assert best["metrics"]["accuracy"] > 0.5 and len(tune.load_results(folder)) == 3 and Path(best["checkpoint"], "network.npz").exists()


def test_a_sweep_that_was_killed_before_its_first_trial_begins(sweep, tmp_path) -> None:
    path = sweep(GRID)
    folder = tmp_path / "out" / "grid"
    command = [*SHOAL, "tune", "run", str(path), "--num-samples", "2"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    begin = time.monotonic()
    while not (folder / "sweep.yaml").exists() and time.monotonic() < begin + 60:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    done = shoal("resume", folder)
    assert "8 terminated; best score=12" in done.stdout


def test_resume_wants_what_run_has_made(tmp_path) -> None:
    assert f"{tmp_path} was not made by `shoal tune run`" in shoal("resume", tmp_path, code=1).stderr
    assert f"there is no experiment in {tmp_path}" in shoal("results", tmp_path, code=1).stderr


# -- files -------------------------------------------------------------------------------------------------------------


def test_every_part_of_a_file_is_read(sweep, tmp_path) -> None:
    found = load_sweep(sweep("""
trainable: my_train.py:train
metric: score
mode: max
num_samples: -1
time_budget_s: 60
reuse_actors: true
max_concurrent_trials: 3
max_failures: 2
stop: {training_iteration: 10, score: 1e3}
resources: {cpu: 2}
checkpoint: {num_to_keep: 2, checkpoint_score_attribute: score}
space:
  lr: {type: loguniform, lower: 1e-4, upper: 1e-1}
  n: {type: randint, lower: 1, upper: 5}
  model:
    kind: {type: choice, values: [a, {deep: {type: uniform, lower: 0, upper: 1}}]}
  fixed: [1, two]
  odd: {type: constant, value: {type: mlp}}
scheduler:
  type: pbt
  time_attr: training_iteration
  perturbation_interval: 4
  hyperparam_mutations:
    lr: {type: loguniform, lower: 1e-4, upper: 1e-1}
    n: {type: choice, values: [1, 2]}
"""))  # fmt: skip
    assert found.space["lr"] == tune.loguniform(1e-4, 1e-1) and found.space["n"] == tune.randint(1, 5)
    assert found.space["model"]["kind"].categories == ("a", {"deep": tune.uniform(0, 1)}) and found.space["fixed"] == [1, "two"]
    assert found.space["odd"] == {"type": "mlp"} and found.run_config.stop == {"training_iteration": 10, "score": 1000.0}
    assert found.tune_config.num_samples == -1 and found.tune_config.reuse_actors and found.tune_config.time_budget_s == 60
    assert found.run_config.failure_config.max_failures == 2 and found.run_config.checkpoint_config.num_to_keep == 2
    assert found.tune_config.scheduler.perturbation_interval == 4 and found.tune_config.scheduler.hyperparam_mutations["lr"] == found.space["lr"]
    assert tune.Tuner(found.trainable, param_space=found.space, tune_config=found.tune_config, run_config=found.run_config)


@pytest.mark.parametrize(("text", "message"), [
    ("trainable: my_train.py:train\nmetrc: loss", r"sweep.yaml:2: metrc: unknown key; did you mean 'metric'\?"), ("metric: a", "trainable: is missing"),
    ("trainable: my_train.py:train\nspace:\n  lr: {type: loguniformm, lower: 1, upper: 2}",
        r"sweep.yaml:3: space.lr.type: unknown type 'loguniformm'; did you mean 'loguniform'\?"),
    ("trainable: my_train.py:train\nspace:\n  lr:\n    type: uniform\n    lowr: 1\n    upper: 2",
        r"sweep.yaml:5: space.lr.lowr: unknown key; did you mean 'lower'\?"),
    ("trainable: my_train.py:train\nspace:\n  lr: {type: uniform, lower: 3, upper: 2}",
        r"sweep.yaml:3: space.lr: uniform: lower must be less than upper, got 3 and 2"),
    ("trainable: my_train.py:train\nspace:\n  lr: {type: uniform, lower: x, upper: 2}", r"sweep.yaml:3: space.lr.lower: a number is wanted, not 'x'"),
    ("trainable: my_train.py:train\nspace:\n  lr: {type: uniform, upper: 2}", r"sweep.yaml:3: space.lr.lower: is missing"),
    ("trainable: my_train.py:train\nmode: maximum", r"sweep.yaml:2: mode: 'maximum': did you mean 'max'\?|one of min, max is wanted"),
    ("trainable: my_train.py:train\nnum_samples: many", r"sweep.yaml:2: num_samples: a whole number is wanted, not 'many'"),
    ("trainable: my_train.py:train\nscheduler: ashaa", r"sweep.yaml:2: scheduler: 'ashaa': did you mean 'asha'\?"),
    ("trainable: my_train.py:train\nscheduler:\n  type: asha\n  max: 3", r"sweep.yaml:4: scheduler.max: unknown key; (did you mean 'max_t'\?|known here)"),
    ("trainable: my_train.py:train\nscheduler: {type: asha, max_t: 0}", r"sweep.yaml:2: scheduler: max_t must be greater than 0, got 0"),
    ("trainable: my_train.py:train\nsearch: {type: optuna, sed: 0}", r"sweep.yaml:2: search.sed: unknown key; did you mean 'seed'\?"),
    ("trainable: my_train.py:train\nresources: {cpu: -1}", r"sweep.yaml:2: resources: .*'cpu' must be a number from 0 on"),
    ("trainable: my_train.py:train\nstop:\n  score: high", r"sweep.yaml:3: stop.score: a number is wanted, not 'high'"),
    ("trainable: my_train.py:trian", r"sweep.yaml:1: trainable: my_train.py has no 'trian'; did you mean 'train'\?"),
    ("trainable: nowhere.py:train", r"sweep.yaml:1: trainable: there is no file .*nowhere.py"), ("trainable: train",
        r"FILE.py:FUNCTION or MODULE:FUNCTION is wanted"),
    ("trainable: no_such_module_x:train", r"trainable: cannot be imported: ModuleNotFoundError: No module named 'no_such_module_x'"),
    ("trainable: my_train.py:Path", r"sweep.yaml:1: trainable: Path is a class, but no subclass of shoal.tune.Trainable"),
    ("trainable: my_train.py:train\ncheckpoint: {keep: 1}", r"sweep.yaml:2: checkpoint.keep: unknown key"),
    ("trainable: [1", r"sweep.yaml:1: .*expected"),
])  # fmt: skip
def test_a_mistake_is_told_with_its_line_its_key_and_the_nearest_known_one(sweep, text: str, message: str) -> None:
    with pytest.raises(YamlConfigError, match=message):
        load_sweep(sweep(text))


def test_a_mistake_is_one_line_for_the_user(sweep) -> None:
    error = shoal("run", sweep("trainable: my_train.py:train\nnum_sample: 3"), code=1).stderr
    assert error.splitlines()[-1].endswith("sweep.yaml:2: num_sample: unknown key; did you mean 'num_samples'?") and "Traceback" not in error
