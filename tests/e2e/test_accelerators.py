"""GPUs as tasks and actors see them, on a machine that is told to have two."""

import os

import pytest
import shoal


@pytest.fixture(scope="module")
def two_gpus():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
        settings = {"raylet": {"infeasible_timeout_s": 1.0}}  # 10 s where nobody says so, which a test here would wait for
        with shoal.init("local", num_cpus=4, num_gpus=2, log_to_driver=False, include_dashboard=False, _system_config=settings):
            yield


def seen():
    return os.environ.get("CUDA_VISIBLE_DEVICES"), shoal.get_gpu_ids(), shoal.get_runtime_context().get_accelerator_ids()["GPU"]


look = shoal.remote(seen)


@shoal.remote
class Holder:
    def look(self):
        return seen()


def test_a_task_sees_the_gpus_that_it_was_given_and_no_others(two_gpus):
    assert shoal.cluster_resources()["GPU"] == 2
    assert shoal.get(look.options(num_gpus=2).remote(), timeout=60) == ("4,6", [4, 6], ["4", "6"])
    assert shoal.get(look.options(num_gpus=0).remote(), timeout=60) == ("", [], [])
    (one,) = shoal.get(look.options(num_gpus=1).remote(), timeout=60)[1]
    assert one in (4, 6)


def test_actors_hold_different_gpus_and_halves_share_one(two_gpus):
    whole = Holder.options(num_gpus=1).remote()
    halves = [Holder.options(num_gpus=0.5).remote() for _ in range(2)]
    (mine,) = shoal.get(whole.look.remote(), timeout=60)[1]
    shared = shoal.get([half.look.remote() for half in halves], timeout=60)
    assert shared[0] == shared[1] and shared[0][1] == [({4, 6} - {mine}).pop()] and shared[0][0] == str(shared[0][1][0])
    assert shoal.available_resources().get("GPU", 0) == 0
    waits = look.options(num_gpus=0.25).remote()
    assert shoal.wait([waits], timeout=0.3)[0] == []
    del whole
    assert shoal.get(waits, timeout=60)[1] == [mine]


def test_a_type_of_accelerator_that_no_node_has_is_named(two_gpus):
    with pytest.raises(shoal.exceptions.TaskUnschedulableError, match="accelerator_type:A100"):
        shoal.get(look.options(accelerator_type="A100").remote(), timeout=60)
