"""Runs over several nodes, and the end of one."""

import os
import pathlib
import tempfile
import threading
import time

import pytest
import shoal
import shoal.train as train
from shoal.cluster_utils import Cluster
from shoal.train import Checkpoint, DataParallelTrainer, FailureConfig, RunConfig, ScalingConfig


@pytest.fixture
def nodes():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    others = [cluster.add_node(num_cpus=2) for _ in range(2)]
    cluster.wait_for_nodes()
    cluster.connect()
    yield cluster, others
    shoal.shutdown()
    cluster.shutdown()


@pytest.mark.parametrize(
    ("scaling", "after"),
    [
        (ScalingConfig(num_workers=3, placement_strategy="SPREAD"), {(3, 1), (3, 2)}),
        (ScalingConfig(num_workers=(2, 3), placement_strategy="STRICT_SPREAD"), {(2, 1)}),
    ],
    ids=["on the others", "with fewer workers"],
)
def test_a_node_that_dies_is_made_good(nodes, tmp_path, scaling, after):
    cluster, others = nodes
    flag, victim = tmp_path / "flag", others[0].unique_id

    def loop():
        context, checkpoint = train.get_context(), train.get_checkpoint()
        here = shoal.get_runtime_context().get_node_id()
        if checkpoint is not None:
            return context.get_world_size(), context.get_local_world_size()
        with tempfile.TemporaryDirectory() as where:
            pathlib.Path(where, str(context.get_world_rank())).write_text(here)
            train.report({"workers": context.get_world_size()}, checkpoint=Checkpoint.from_directory(where))
        if here == victim:
            flag.touch()
        threading.Event().wait(60)
        return None

    def end_a_node():
        deadline = time.monotonic() + 60
        while not flag.exists() and time.monotonic() < deadline:
            threading.Event().wait(0.02)
        cluster.remove_node(others[0])

    killer = threading.Thread(target=end_a_node)
    killer.start()
    run_config = RunConfig(name="run", storage_path=str(tmp_path / "results"), failure_config=FailureConfig(max_failures=1))
    result = DataParallelTrainer(loop, scaling_config=scaling, run_config=run_config).fit()
    killer.join(30)
    seen = {pathlib.Path(result.checkpoint.path, name).read_text() for name in os.listdir(result.checkpoint.path)}
    assert len(seen) == 3
    assert result.metrics == {"workers": 3}
    assert result.return_value in after
