"""LightGBM on workers: one model from all rows."""

import numpy as np
import pytest
import shoal.train as train
from shoal.train import NoSessionError, RunConfig, ScalingConfig, WorkerGroupError
from shoal.train.lightgbm import LightGBMConfig, LightGBMTrainer, RayTrainReportCallback, get_network_params

lightgbm = pytest.importorskip("lightgbm")
pytestmark = pytest.mark.usefixtures("cluster")
PARAMS = {"objective": "binary", "metric": ["binary_logloss", "auc"], "num_threads": 1, "tree_learner": "data", "pre_partition": True, "verbose": -1}


def rows(part, parts, n=600):
    """A part of a table whose label depends on two of its columns."""
    x = np.random.default_rng(5).normal(size=(n, 4))
    y = (x[:, 0] + x[:, 1] > 0).astype(int)
    return x[part::parts], y[part::parts]


def loop(config):
    context = train.get_context()
    x, y = rows(context.get_world_rank(), context.get_world_size())
    data = lightgbm.Dataset(x, y)
    model = lightgbm.train(
        {**PARAMS, **get_network_params()}, data, num_boost_round=10, valid_sets=[data], valid_names=["train"],
        callbacks=[RayTrainReportCallback(**config)],
    )  # fmt: skip
    return model.predict(rows(0, 1)[0]).tolist()


@pytest.fixture
def fit(tmp_path):
    def run(config, workers=2):
        run_config = RunConfig(name="run", storage_path=str(tmp_path))
        return LightGBMTrainer(loop, train_loop_config=config, scaling_config=ScalingConfig(num_workers=workers), run_config=run_config).fit()

    return run


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_grow_one_model_of_all_rows(fit, workers):
    result = fit({"frequency": 4}, workers)
    x, y = rows(0, 1)
    model = RayTrainReportCallback.get_model(result.checkpoint)
    assert model.num_trees() == 10
    predicted = model.predict(x)
    assert ((predicted > 0.5) == y).mean() > 0.95
    np.testing.assert_allclose(predicted, result.return_value)
    assert set(result.metrics) == {"train-binary_logloss", "train-auc"}
    assert result.metrics["train-auc"] > 0.97
    assert len(result.history) == 10
    assert len(result.best_checkpoints) == 3  # after the rounds 4 and 8, and at the end
    # A worker that saw its own rows alone would have found other trees.
    alone = lightgbm.train({**PARAMS, "tree_learner": "serial"}, lightgbm.Dataset(*rows(0, workers)), num_boost_round=10).predict(x)
    assert np.allclose(alone, predicted) == (workers == 1)


def test_metrics_are_chosen_renamed_and_changed(fit):
    result = fit({"metrics": {"auc": "train-auc"}, "checkpoint_at_end": False, "results_postprocessing_fn": lambda found: {**found, "twice": 2 * found["auc"]}})
    assert set(result.metrics) == {"auc", "twice"}
    assert result.checkpoint is None


def test_a_metric_that_is_not_there_is_told(fit):
    with pytest.raises(WorkerGroupError, match=r"there is no metric 'train-acc'; there are train-binary_logloss, train-auc"):
        fit({"metrics": "train-acc"})


def test_settings_and_places_are_checked():
    with pytest.raises(NoSessionError, match="call it in the training function"):
        get_network_params()
    with pytest.raises(ValueError, match="time_out=0: a whole number of minutes"):
        LightGBMConfig(time_out=0)
    with pytest.raises(TypeError, match="lightgbm_config must be a LightGBMConfig, got dict"):
        LightGBMTrainer(loop, lightgbm_config={})
