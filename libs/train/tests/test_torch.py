"""PyTorch on workers: process groups, models, data loaders, learning."""

import importlib.util
import os
import pathlib
import signal
import tempfile

import pytest
import shoal.train as train
import torch
from shoal.train import Checkpoint, FailureConfig, NoSessionError, RunConfig, ScalingConfig, WorkerEndedError, WorkerGroupError
from shoal.train.session import TrainContext, use_session
from shoal.train.torch import TorchConfig, TorchTrainer, enable_reproducibility, get_device, get_devices, prepare_data_loader, prepare_model
from shoal.train.torch.loader import MovingLoader, moved
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, TensorDataset

pytestmark = pytest.mark.usefixtures("cluster")
EXAMPLES = pathlib.Path(__file__).resolve().parents[3] / "examples"
ROWS, BATCH, STEPS = 64, 16, 4


@pytest.fixture
def fit(tmp_path):
    def run(loop, config=None, workers=2, failures=0, torch_config=None):
        run_config = RunConfig(name="run", storage_path=str(tmp_path), failure_config=FailureConfig(max_failures=failures))
        return TorchTrainer(
            loop, train_loop_config=config, torch_config=torch_config, scaling_config=ScalingConfig(num_workers=workers), run_config=run_config
        ).fit()

    return run


class Ranked:
    """A session of one rank, without a cluster."""

    def __init__(self, rank=0, size=1):
        self.context = TrainContext(world_size=size, world_rank=rank)

    def report(self, metrics, checkpoint=None, checkpoint_dir_name=None):
        pass

    def get_checkpoint(self):
        return None

    def get_context(self):
        return self.context


def trained(world_size):
    """A small network after a few steps of the same global batches; its parameters in one vector."""
    torch.manual_seed(3)
    data = TensorDataset(torch.randn(ROWS, 8), torch.randn(ROWS, 1))
    loader = prepare_data_loader(DataLoader(data, batch_size=BATCH // world_size))
    model = prepare_model(torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    steps = 0
    for x, y in loader:
        loss = torch.nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    assert steps == STEPS
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy().tolist()


def test_two_workers_learn_what_one_process_learns(fit):
    together = fit(lambda: trained(2)).return_value
    with use_session(Ranked()):
        alone = trained(1)
    torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("init_method", ["env", "tcp"])
def test_workers_form_a_process_group(fit, init_method):
    def loop():
        from torch import distributed

        total = torch.tensor([distributed.get_rank() + 1.0])
        distributed.all_reduce(total)
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK")
        return total.item(), distributed.get_backend(), [os.environ[name] for name in names], torch.get_num_threads(), str(get_device())

    result = fit(loop, torch_config=TorchConfig(init_method=init_method))
    assert result.return_value == (3.0, "gloo", ["0", "2", "0", "2", "0"], 1, "cpu")


def test_data_loaders_may_have_processes_of_their_own(fit):
    def loop():
        data = TensorDataset(torch.arange(12.0))
        loader = prepare_data_loader(DataLoader(data, batch_size=2, shuffle=True, num_workers=1, persistent_workers=True))
        seen = []
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            seen.append([len(batch) for (batch,) in loader])
        return seen

    assert fit(loop).return_value == [[2, 2, 2]] * 2


def test_a_worker_killed_in_the_middle_of_a_collective_is_made_good(fit):
    def loop():
        from torch import distributed

        checkpoint = train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as where:
                return pathlib.Path(where, "step").read_text()
        with tempfile.TemporaryDirectory() as where:
            pathlib.Path(where, "step").write_text("one")
            train.report({"step": 1}, checkpoint=Checkpoint.from_directory(where))
        if distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        distributed.all_reduce(torch.zeros(1))
        return None

    assert fit(loop, failures=1).return_value == "one"


def test_the_rank_that_died_is_named_before_those_that_missed_it(fit):
    def loop():
        from torch import distributed

        if distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        distributed.all_reduce(torch.zeros(1))

    with pytest.raises(WorkerGroupError, match="^rank 1 failed: .*SIGKILL") as caught:
        fit(loop)
    assert isinstance(caught.value.worker_failures[1], WorkerEndedError)


def test_a_backend_that_torch_does_not_have_is_named(fit):
    with pytest.raises(WorkerGroupError, match="carrier-pigeon"):
        fit(lambda: None, torch_config=TorchConfig(backend="carrier-pigeon"))


def test_digits_are_learnt_on_two_workers(tmp_path):
    spec = importlib.util.spec_from_file_location("train_digits", EXAMPLES / "train_digits.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)  # not in sys.modules: workers get its functions by value
    result = program.train(workers=2, epochs=20, storage=str(tmp_path), name="digits")
    assert result.metrics["epoch"] == 19
    assert result.metrics["accuracy"] >= 0.97
    assert len(result.best_checkpoints) <= 3


# -- without a cluster -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "match"), [({"init_method": "file"}, "init_method='file'"), ({"timeout_s": 0}, "timeout_s=0"), ({"timeout_s": "long"}, "timeout_s='long'")]
)
def test_a_wrong_configuration_is_refused(given, match):
    with pytest.raises(ValueError, match=match):
        TorchConfig(**given)


def test_a_trainer_refuses_another_configuration():
    with pytest.raises(TypeError, match="torch_config must be a TorchConfig, got str"):
        TorchTrainer(lambda: None, torch_config="gloo")


def test_one_worker_needs_no_wrapping():
    model = torch.nn.Linear(2, 2)
    with use_session(Ranked()):
        assert prepare_model(model) is model
        assert get_devices() == [torch.device("cpu")] or torch.cuda.is_available()


def test_wrong_strategies_are_refused():
    model = torch.nn.Linear(2, 2)
    with use_session(Ranked(size=2)):
        assert prepare_model(model, parallel_strategy=None) is model
        with pytest.raises(ValueError, match="parallel_strategy='dp'"):
            prepare_model(model, parallel_strategy="dp")
        with pytest.raises(ValueError, match="needs workers with GPUs"):
            prepare_model(model, parallel_strategy="fsdp", move_to_device=torch.device("cpu"))


def test_outside_of_a_training_function_nothing_is_prepared():
    for call in (get_device, lambda: prepare_model(torch.nn.Linear(1, 1)), lambda: prepare_data_loader(DataLoader([1]))):
        with pytest.raises(NoSessionError):
            call()


def rows(rank, **options):
    with use_session(Ranked(rank, 2)):
        return prepare_data_loader(DataLoader(list(range(12)), batch_size=2, **options), move_to_device=False)


def test_data_is_divided_and_goes_on_to_be_shuffled():
    parts = [torch.cat(list(rows(rank))).tolist() for rank in (0, 1)]
    assert parts == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]
    loaders = [rows(rank, shuffle=True, drop_last=True) for rank in (0, 1)]
    orders = []
    for epoch in (0, 1):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        shuffled = [torch.cat(list(loader)).tolist() for loader in loaders]
        assert sorted(shuffled[0] + shuffled[1]) == list(range(12))
        orders.append(shuffled)
    assert orders[0] != orders[1]
    assert loaders[0].drop_last


def test_data_that_cannot_be_divided_is_left_or_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(3))

    stream = DataLoader(Stream())
    own = DataLoader([1, 2, 3], batch_sampler=BatchSampler(SequentialSampler([1, 2, 3]), 2, False))
    with use_session(Ranked(0, 2)):
        assert prepare_data_loader(stream) is stream
        assert prepare_data_loader(own, add_dist_sampler=False) is own
        with pytest.raises(ValueError, match="batch_sampler of its own"):
            prepare_data_loader(own)


def test_batches_of_any_shape_are_moved():
    from collections import namedtuple

    Pair = namedtuple("Pair", "x y")
    batch = {"a": [torch.ones(1), "text"], "b": Pair(torch.ones(2), (torch.ones(3),))}
    there = moved(batch, torch.device("meta"), False)
    assert there["a"][0].device.type == "meta"
    assert there["a"][1] == "text"
    assert isinstance(there["b"], Pair)
    assert there["b"].y[0].device.type == "meta"
    loader = MovingLoader(DataLoader(torch.ones(4, 2), batch_size=2), torch.device("meta"), True)
    assert [tuple(batch.shape) for batch in loader] == [(2, 2), (2, 2)]
    assert all(batch.device.type == "meta" for batch in loader)
    assert len(loader) == 2
    assert loader.batch_size == 2


def test_tensors_are_no_metrics(fit):
    def loop():
        train.report({"deep": {"loss": torch.ones(1)}})

    with pytest.raises(WorkerGroupError, match=r"metrics\['loss'\] is a Tensor of torch.*\.item\(\)"):
        fit(loop, workers=0)


def test_seeds_make_runs_alike():
    def numbers():
        import random

        import numpy as np

        enable_reproducibility(5)
        return random.random(), np.random.rand(), torch.rand(1).item()

    try:
        assert numbers() == numbers()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
