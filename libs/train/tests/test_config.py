"""What a user says is checked where it is said."""

import pytest
from shoal.train import CheckpointConfig, DataConfig, DataParallelTrainer, FailureConfig, RunConfig, ScalingConfig


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"num_workers": -1}, "num_workers=-1"),
        ({"num_workers": 1.5}, "num_workers=1.5"),
        ({"num_workers": True}, "num_workers=True"),
        ({"num_workers": (4, 2)}, "smallest"),
        ({"num_workers": (1, 2, 3)}, "pair"),
        ({"placement_strategy": "NEAR"}, "NEAR.*PACK"),
        ({"resources_per_worker": {"CPU": -1}}, "CPU"),
        ({"resources_per_worker": {"CPU": 0}}, "some resource"),
        ({"resources_per_worker": ["CPU"]}, "dict"),
        ({"resources_per_worker": {"CPU": 1, "GPU": 1}}, "use_gpu=True"),
        ({"resources_per_worker": {"CPU": 1, "GPU": 0}, "use_gpu": True}, "GPU"),
        ({"num_workers": 3, "label_selector": [{"a": "b"}]}, "1 entries for 3 workers"),
        ({"num_workers": (1, 3), "label_selector": [{"a": "b"}]}, "range"),
    ],
)
def test_wrong_scaling_is_refused_by_name(given, match):
    with pytest.raises(ValueError, match=match):
        ScalingConfig(**given)


def test_scaling_adds_up():
    config = ScalingConfig(num_workers=3, use_gpu=True, resources_per_worker={"CPU": 2, "disk": 1}, accelerator_type="H200")
    assert config.total_resources == {"CPU": 6, "GPU": 3, "disk": 3, "accelerator_type:H200": 0.003}
    assert (config.num_cpus_per_worker, config.num_gpus_per_worker) == (2, 1)
    assert config.additional_resources_per_worker == {"disk": 1, "accelerator_type:H200": 0.001}
    assert ScalingConfig(num_workers=(2, 4)).min_workers == 2
    assert ScalingConfig(num_workers=(2, 4)).max_workers == 4
    assert ScalingConfig(use_gpu=True).resources_of_a_worker == {"CPU": 1, "GPU": 1}


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: FailureConfig(max_failures=-2), "max_failures=-2"),
        (lambda: CheckpointConfig(num_to_keep=0), "num_to_keep=0"),
        (lambda: CheckpointConfig(checkpoint_score_order="best"), "best"),
        (lambda: RunConfig(name="a/b"), "a/b"),
        (lambda: RunConfig(name=""), "name=''"),
        (lambda: RunConfig(storage_path=3), "storage_path=3"),
        (lambda: RunConfig(storage_filesystem=object()), "storage_path"),
    ],
)
def test_wrong_policies_are_refused_by_name(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_results_lie_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("SHOAL_STORAGE_PATH", "/elsewhere")
    assert RunConfig().storage_path == "/elsewhere"
    monkeypatch.delenv("SHOAL_STORAGE_PATH")
    assert RunConfig().storage_path == "~/shoal_results"


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"train_loop_per_worker": 3}, "function"),
        ({"train_loop_config": [1]}, "train_loop_config"),
        ({"scaling_config": {"num_workers": 2}}, "scaling_config"),
        ({"run_config": "here"}, "run_config"),
        ({"datasets": [1]}, "datasets"),
        ({"backend_config": object()}, "backend_config"),
        ({"resume_from_checkpoint": "/path"}, "resume_from_checkpoint"),
    ],
)
def test_a_trainer_refuses_arguments_of_another_type(given, match):
    with pytest.raises(TypeError, match=match):
        DataParallelTrainer(**{"train_loop_per_worker": lambda: None, **given})


def test_a_function_that_needs_two_arguments_is_refused():
    with pytest.raises(ValueError, match="2: config, more"):
        DataParallelTrainer(lambda config, more: None)


def test_a_dataset_to_split_that_is_not_given_is_refused():
    with pytest.raises(ValueError, match="test, but the datasets are: train"):
        DataParallelTrainer(lambda: None, datasets={"train": [1]}, dataset_config=DataConfig(["test"]))
    with pytest.raises(TypeError, match="datasets_to_split"):
        DataConfig("train")
