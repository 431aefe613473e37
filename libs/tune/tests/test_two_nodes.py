"""Trials on several nodes, one of which dies."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import cloudpickle
import shoal
from shoal import tune
from shoal.cluster_utils import Cluster

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def steps(config: dict) -> None:
    folder = Path(tune.get_context().get_trial_dir())
    checkpoint = tune.get_checkpoint()
    first = int(Path(checkpoint.path, "step").read_text()) + 1 if checkpoint else 0
    for step in range(first, 4):
        scratch = folder / "scratch"
        scratch.mkdir(exist_ok=True)
        (scratch / "step").write_text(str(step))
        tune.report({"step": step, "first": first, "node": shoal.get_runtime_context().get_node_id()}, checkpoint=tune.Checkpoint.from_directory(scratch))
        while step == 1 and not Path(config["go"]).exists():
            time.sleep(0.02)


def test_trials_of_a_node_that_dies_go_on_at_another_from_their_checkpoints(tmp_path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    other = cluster.add_node(num_cpus=1)
    shoal.init(address=cluster.address, log_to_driver=False)

    class KillNode(tune.Callback):
        """When both trials are at their second report, each on a node of its own."""

        killed = False

        def on_trial_result(self, iteration, trials, trial, result, **info):
            at = {one.last_result.get("node") for one in trials if one.last_result.get("step") == 1}
            if len(at) == 2 and not self.killed:
                self.killed = True
                cluster.remove_node(other)
                (tmp_path / "go").touch()

    run_config = tune.RunConfig(storage_path=str(tmp_path), name="exp", verbose=0, failure_config=tune.FailureConfig(max_failures=2), callbacks=[KillNode()])
    try:
        results = tune.Tuner(steps, param_space={"go": str(tmp_path / "go")}, tune_config=tune.TuneConfig(num_samples=2), run_config=run_config).fit()
        assert not results.errors and [result.metrics["step"] for result in results] == [3, 3]
        assert sorted(result.metrics["first"] for result in results) == [0, 2]
        assert {result.metrics["node"] for result in results} == {cluster.head_node.node_id}
    finally:
        shoal.shutdown()
        cluster.shutdown()
