"""The process that calls fit() is killed: the run goes on when it is called again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from shoal.testing import wait_until
from shoal.train import Result

PROGRAM = """
import pathlib, sys, tempfile
import shoal, shoal.train as train
from shoal.train import Checkpoint, DataParallelTrainer, RunConfig, ScalingConfig

def loop(config):
    checkpoint, first = train.get_checkpoint(), 0
    if checkpoint is not None:
        with checkpoint.as_directory() as where:
            first = int(pathlib.Path(where, "step").read_text()) + 1
    for step in range(first, 6):
        if step == 3 and first == 0:
            pathlib.Path(config["flag"]).touch()
            import threading; threading.Event().wait(60)
        with tempfile.TemporaryDirectory() as where:
            pathlib.Path(where, "step").write_text(str(step))
            train.report({"step": step, "first": first}, checkpoint=Checkpoint.from_directory(where))

if __name__ == "__main__":
    shoal.init("local", num_cpus=2, include_dashboard=False)
    DataParallelTrainer(loop, train_loop_config={"flag": sys.argv[2]}, scaling_config=ScalingConfig(num_workers=2),
                        run_config=RunConfig(name="run", storage_path=sys.argv[1])).fit()
    shoal.shutdown()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_whose_driver_was_ended_goes_on_when_it_is_called_again(how, tmp_path):
    program, flag = tmp_path / "program.py", tmp_path / "flag"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(tmp_path / "results"), str(flag)]
    driver = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_until(flag.exists, what="the run to reach its third step")
    os.kill(driver.pid, how)
    driver.wait(30)
    left = Result.from_path(tmp_path / "results" / "run")
    assert left.metrics == {"step": 2, "first": 0}
    subprocess.run(command, check=True, timeout=60)
    result = Result.from_path(tmp_path / "results" / "run")
    assert result.metrics == {"step": 5, "first": 3}
    assert [row["step"] for row in result.history] == list(range(6))
    assert len(os.listdir(Path(result.checkpoint.path))) == 1
