"""Whole runs on a cluster of four CPUs."""

import os
import pathlib
import shutil
import signal
import tempfile
import threading
import time

import pytest
import shoal
import shoal.train as train
from shoal.testing import wait_until
from shoal.train import (
    Backend,
    BackendConfig,
    Checkpoint,
    CheckpointConfig,
    CollectiveMismatchError,
    ControllerError,
    DataConfig,
    DataParallelTrainer,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    UserCallback,
    WorkerEndedError,
    WorkerGroupError,
)
from shoal.util import placement_group, remove_placement_group

pytestmark = pytest.mark.usefixtures("cluster")
TWO = ScalingConfig(num_workers=2)


@pytest.fixture
def fit(tmp_path):
    def run(loop, config=None, scaling=TWO, failures=0, trainer=DataParallelTrainer, **options):
        keep = {name: options.pop(name) for name in ("num_to_keep", "checkpoint_score_attribute") if name in options}
        run_config = RunConfig(
            name=options.pop("name", "run"), storage_path=options.pop("storage_path", str(tmp_path / "results")),
            storage_filesystem=options.pop("storage_filesystem", None), callbacks=options.pop("callbacks", None),
            failure_config=FailureConfig(max_failures=failures), checkpoint_config=CheckpointConfig(**keep),
        )  # fmt: skip
        return trainer(loop, train_loop_config=config, scaling_config=scaling, run_config=run_config, **options).fit()

    return run


def steps(config):
    """Counts to `to`, with a checkpoint each time; resumes."""
    rank, checkpoint, first = train.get_context().get_world_rank(), train.get_checkpoint(), 0
    if checkpoint is not None:
        with checkpoint.as_directory() as where:
            first = int(pathlib.Path(where, f"rank{rank}").read_text()) + 1
    for step in range(first, config["to"]):
        if rank == config.get("victim") and step == config.get("at") and first == 0:
            config["how"]()
        with tempfile.TemporaryDirectory() as where:
            pathlib.Path(where, f"rank{rank}").write_text(str(step))
            train.report({"step": step, "first": first}, checkpoint=Checkpoint.from_directory(where))
    return first


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise KeyError("no such thing")


def test_all_ranks_files_come_together_in_one_checkpoint(fit):
    result = fit(steps, {"to": 3})
    assert result.metrics == {"step": 2, "first": 0}
    assert [row["step"] for row in result.history] == [0, 1, 2]
    assert result.return_value == 0
    assert result.error is None
    assert sorted(os.listdir(result.checkpoint.path)) == ["rank0", "rank1"]
    assert len(result.best_checkpoints) == 3
    assert sorted(os.listdir(result.path)) == [".lock", "checkpoint_000000", "checkpoint_000001", "checkpoint_000002", "progress.jsonl", "run.json"]


def test_the_context_tells_the_ranks(fit):
    def loop():
        context = train.get_context()
        mine = {"rank": context.get_world_rank(), "local": context.get_local_rank(), "pid": os.getpid()}
        told = train.collective.broadcast_from_rank_zero(mine)
        train.collective.barrier()
        assert told["rank"] == 0
        assert (mine["pid"] == told["pid"]) == (mine["rank"] == 0)
        return (context.get_world_size(), context.get_local_world_size(), context.get_node_rank(), context.get_experiment_name(), context.get_storage().path,
                mine["local"])  # fmt: skip

    result = fit(loop, scaling=ScalingConfig(num_workers=3), name="named")
    assert result.return_value == (3, 3, 0, "named", result.path, 0)
    assert result.metrics is None


def test_a_killed_worker_is_made_good_from_the_last_checkpoint(fit):
    result = fit(steps, {"to": 5, "victim": 1, "at": 3, "how": kill}, failures=1)
    assert result.metrics == {"step": 4, "first": 3}
    assert [row["step"] for row in result.history] == [0, 1, 2, 3, 4]


def test_failures_beyond_the_limit_raise_with_rank_and_traceback(fit, tmp_path):
    with pytest.raises(WorkerGroupError, match=r"(?s)rank 1 failed: KeyError in process.*in fail.*no such thing.*max_failures=0") as caught:
        fit(steps, {"to": 5, "victim": 1, "at": 3, "how": fail})
    assert isinstance(caught.value.worker_failures[1], KeyError)
    assert isinstance(caught.value.__cause__, KeyError)
    # What was reached stays, and can be gone on from.
    left = train.Result.from_path(tmp_path / "results" / "run")
    assert left.metrics["step"] == 2
    assert "no such thing" in str(left.error)


def test_a_worker_that_dies_tells_how(fit):
    with pytest.raises(WorkerGroupError, match="rank 0 failed.*process.*SIGKILL") as caught:
        fit(steps, {"to": 5, "victim": 0, "at": 1, "how": kill})
    assert isinstance(caught.value.worker_failures[0], WorkerEndedError)


def dies_half_way(source, target, **_):
    os.makedirs(target, exist_ok=True)
    pathlib.Path(target, "rank1").write_text("wh")
    kill()


def test_a_worker_killed_while_it_saves_leaves_the_previous_checkpoint(fit):
    def loop(config):
        rank, before = train.get_context().get_world_rank(), train.get_checkpoint()
        with tempfile.TemporaryDirectory() as where:
            pathlib.Path(where, f"rank{rank}").write_text("whole")
            if before is not None:
                with before.as_directory() as last:
                    return sorted(os.listdir(last)), [pathlib.Path(last, name).read_text() for name in sorted(os.listdir(last))]
            train.report({"n": 1}, checkpoint=Checkpoint.from_directory(where))
            if rank == 1:
                shutil.copytree = dies_half_way
            train.report({"n": 2}, checkpoint=Checkpoint.from_directory(where))
        return None

    result = fit(loop, {}, failures=1)
    assert result.return_value == (["rank0", "rank1"], ["whole", "whole"])
    assert result.metrics == {"n": 1}


def test_the_same_name_and_path_go_on(fit):
    first = fit(steps, {"to": 2})
    second = fit(steps, {"to": 4})
    assert first.metrics == {"step": 1, "first": 0}
    assert second.metrics == {"step": 3, "first": 2}
    assert [row["step"] for row in second.history] == [0, 1, 2, 3]


def test_a_run_may_begin_with_another_ones_checkpoint(fit):
    first = fit(steps, {"to": 2}, name="one")
    second = fit(steps, {"to": 4}, name="two", resume_from_checkpoint=first.checkpoint)
    assert second.metrics == {"step": 3, "first": 2}
    assert len(second.history) == 2


def test_unequal_numbers_of_report_are_told_at_once(fit):
    def loop():
        for i in range(3 if train.get_context().get_world_rank() == 0 else 2):
            train.report({"i": i})

    begin = time.monotonic()
    with pytest.raises(WorkerGroupError, match=r"rank 0 called report\(\), but rank 1 returned.*rank 0: 3, rank 1: 2") as caught:
        fit(loop, failures=3)
    assert time.monotonic() - begin < 20
    assert isinstance(caught.value.worker_failures[0], CollectiveMismatchError)


def test_a_rank_that_never_reports_is_told_in_bounded_time(fit, monkeypatch, caplog):
    def loop():
        if train.get_context().get_world_rank() == 0:
            train.report({"i": 0})
        else:
            threading.Event().wait(60)

    monkeypatch.setenv("SHOAL_TRAIN_COLLECTIVE_TIMEOUT_S", "0.6")
    monkeypatch.setenv("SHOAL_TRAIN_COLLECTIVE_WARN_S", "0.2")
    with pytest.raises(WorkerGroupError, match=r"rank 0 wait\(s\) in report\(\) for rank 1"):
        fit(loop)
    assert "rank 0 wait(s) in report() for rank 1" in caplog.text


def test_different_calls_are_told(fit):
    def loop():
        if train.get_context().get_world_rank() == 0:
            train.report({"i": 0})
        else:
            train.collective.barrier()

    with pytest.raises(WorkerGroupError, match=r"rank 1 called barrier\(\); rank 0 called report\(\)"):
        fit(loop)


def test_a_name_that_was_used_is_refused_in_the_function(fit):
    def loop():
        with tempfile.TemporaryDirectory() as where:
            pathlib.Path(where, "x").write_text("")
            for _ in range(2):
                train.report({}, checkpoint=Checkpoint.from_directory(where), checkpoint_dir_name="best")

    with pytest.raises(WorkerGroupError, match="ValueError.*(?s:.*)'best' is the name of an earlier checkpoint"):
        fit(loop)


def test_only_the_wanted_checkpoints_stay(fit):
    def loop():
        for score in (1, 3, 2):
            with tempfile.TemporaryDirectory() as where:
                train.report({"score": score}, checkpoint=Checkpoint.from_directory(where))
        return [reported.metrics["score"] for reported in train.get_all_reported_checkpoints()]

    result = fit(loop, num_to_keep=1, checkpoint_score_attribute="score")
    assert [metrics["score"] for _, metrics in result.best_checkpoints] == [3, 2]
    assert result.return_value == [3, 2]


def test_a_filesystem_that_is_no_disk_of_this_machine(fit, tmp_path):
    from pyarrow import fs

    elsewhere = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    result = fit(steps, {"to": 4, "victim": 0, "at": 2, "how": kill}, failures=1, storage_path="far/away", storage_filesystem=elsewhere, num_to_keep=2)
    assert result.metrics == {"step": 3, "first": 2}
    assert result.path == "far/away/run"
    assert sorted(os.listdir(tmp_path / "far" / "away" / "run")) == ["checkpoint_000002", "checkpoint_000003", "progress.jsonl", "run.json"]
    assert result.filesystem == elsewhere


class Splits:
    """What shoal.data's datasets promise."""

    def __init__(self, rows):
        self.rows = rows

    def streaming_split(self, n, *, equal, locality_hints):
        assert equal
        assert len(locality_hints) == n
        return [self.rows[i::n] for i in range(n)]

    def iterator(self):
        return ("all", self.rows)


def test_datasets_are_dealt_out(fit):
    def loop():
        rank = train.get_context().get_world_rank()
        told = [train.get_dataset_shard(name) for name in ("split", "whole", "list", "made")]
        with pytest.raises(KeyError, match="no dataset 'other': the trainer was given 'split'"):
            train.get_dataset_shard("other")
        assert told[0] == [[0, 2], [1, 3]][rank]
        assert told[3] == [[0], [1]][rank]
        return told

    datasets = {"split": Splits([0, 1, 2, 3]), "whole": Splits([5]), "list": [7, 8], "made": lambda: Splits([0, 1])}
    result = fit(loop, datasets=datasets, dataset_config=DataConfig(["split", "made", "list"]))
    assert result.return_value == [[0, 2], ("all", [5]), [7, 8], [0]]


def test_callbacks_hear_of_reports_and_failures(fit):
    class Listener(UserCallback):
        heard: list = []  # noqa: RUF012

        def after_report(self, run_context, metrics, checkpoint):
            self.heard.append((run_context.run_config.name, [m["step"] for m in metrics], os.path.basename(checkpoint.path)))

        def after_exception(self, run_context, worker_exceptions):
            self.heard.append({rank: type(error) for rank, error in worker_exceptions.items()})

    fit(steps, {"to": 2, "victim": 1, "at": 1, "how": fail}, failures=1, callbacks=[Listener()])
    assert Listener.heard == [("run", [0, 0], "checkpoint_000000"), {1: KeyError}, ("run", [1, 1], "checkpoint_000001")]


def give(value):
    os.environ["GIVEN"] = value


def test_backends_see_the_workers(fit):
    class Says(BackendConfig):
        @property
        def backend_cls(self):
            return Sets

    class Sets(Backend):
        def on_start(self, worker_group, backend_config):
            assert len(worker_group) == 2
            pids = worker_group.execute(os.getpid)
            assert pids == [worker.pid for worker in worker_group.workers]
            worker_group.execute(give, "all")
            worker_group.execute_single(0, give, value="first")

    assert fit(lambda: os.environ["GIVEN"], backend_config=Says()).return_value == "first"


def test_a_backend_that_fails_tells_the_rank(fit):
    class Fails(BackendConfig):
        @property
        def backend_cls(self):
            return Raises

    class Raises(Backend):
        def on_start(self, worker_group, backend_config):
            worker_group.execute_single(1, int, "no number")

    with pytest.raises(WorkerGroupError, match="rank 1 failed: ValueError(?s:.*)no number"):
        fit(lambda: None, backend_config=Fails())


def test_no_room_is_told_in_bounded_time(fit, monkeypatch):
    monkeypatch.setenv("SHOAL_TRAIN_START_TIMEOUT_S", "0.3")
    with pytest.raises(ControllerError, match=r"within 0.3 s there was no room for 3 worker\(s\) of {CPU: 2} each.*The cluster has {.*CPU: 4"):
        fit(lambda: None, scaling=ScalingConfig(num_workers=3, resources_per_worker={"CPU": 2}))


def test_a_limit_that_is_no_number_is_named(fit, monkeypatch):
    monkeypatch.setenv("SHOAL_TRAIN_START_TIMEOUT_S", "soon")
    with pytest.raises(ValueError, match="SHOAL_TRAIN_START_TIMEOUT_S='soon'"):
        fit(lambda: None)


def test_storage_that_workers_do_not_see_is_named(fit):
    # Each process has a memory of its own, as nodes have disks.
    with pytest.raises(ControllerError, match="run's folder .*away/run is not visible on node .* a storage_path that all of them share"):
        fit(lambda: None, storage_path="memory://away", failures=3)


def test_as_many_workers_as_there_is_room_for(fit):
    result = fit(lambda: train.get_context().get_world_size(), scaling=ScalingConfig(num_workers=(1, 9)))
    assert result.return_value == 4


def test_fewer_workers_when_somebody_else_holds_the_rest(fit):
    group = placement_group([{"CPU": 2}])
    assert group.wait(30)
    result = fit(lambda: train.get_context().get_world_size(), scaling=ScalingConfig(num_workers=(1, 9)))
    remove_placement_group(group)
    assert result.return_value in (1, 2)


def test_resources_are_given_back(fit):
    with pytest.raises(WorkerGroupError):
        fit(fail, scaling=ScalingConfig(num_workers=4))
    wait_until(lambda: shoal.available_resources().get("CPU") == 4, what="all CPUs to be free")


def test_threads_are_as_many_as_cpus(fit):
    def loop():
        return os.environ["OMP_NUM_THREADS"]

    assert fit(loop, scaling=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 2})).return_value == "2"


def test_what_cannot_travel_is_told(fit):
    with pytest.raises(WorkerGroupError, match="returned cannot be pickled: lock"):
        fit(lambda: threading.Lock())
    lock = threading.Lock()
    with pytest.raises(TypeError, match="lock"):
        fit(lambda: lock)

    def odd():
        class Odd(Exception):
            def __reduce__(self):
                raise TypeError("never")

        raise Odd("strange")

    with pytest.raises(WorkerGroupError, match="strange"):
        fit(odd)


def test_a_function_that_exits_has_failed(fit):
    def loop():
        raise SystemExit(3)

    with pytest.raises(WorkerGroupError, match="SystemExit: 3"):
        fit(loop)


def test_a_trainer_may_run_in_a_task(fit, tmp_path):
    @shoal.remote(num_cpus=1)
    def task():
        return fit(steps, {"to": 2}).metrics

    assert shoal.get(task.remote(), timeout=60) == {"step": 1, "first": 0}


# -- in the calling process --------------------------------------------------------------------------------------------


def test_without_workers_the_function_runs_here(fit):
    def loop(config):
        assert os.getpid() == config["pid"]
        assert train.collective.broadcast_from_rank_zero(3) == 3
        train.collective.barrier()
        assert train.get_dataset_shard() == [1]
        return steps(config)

    here = ScalingConfig(num_workers=0)
    result = fit(loop, {"pid": os.getpid(), "to": 3, "victim": 0, "at": 2, "how": fail}, scaling=here, failures=1, datasets={"a": [1]})
    assert result.metrics == {"step": 2, "first": 2}
    assert result.return_value == 2
    with pytest.raises(WorkerGroupError, match="rank 0 failed: KeyError"):
        fit(fail, scaling=here, name="other")
