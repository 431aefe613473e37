"""Stoppers, each for what it is for."""

import pickle
from datetime import timedelta

import pytest
from shoal.tune.stopper import (
    CombinedStopper,
    ExperimentPlateauStopper,
    FunctionStopper,
    MaximumIterationStopper,
    NoopStopper,
    Stopper,
    TimeoutStopper,
    TrialPlateauStopper,
    as_stopper,
)


def test_a_dict_stops_at_the_first_metric_that_reaches_its_value() -> None:
    stop = as_stopper({"a": 3, "n/b": 1.5})
    assert not stop("t", {"a": 2, "n": {"b": 1}}) and stop("t", {"a": 3}) and stop("t", {"a": 0, "n": {"b": 2}})


def test_a_plateau_stops_a_trial_whose_values_do_not_move() -> None:
    stop = TrialPlateauStopper("loss", std=0.01, num_results=3, grace_period=4)
    assert [stop("t", {"loss": 1.0}) for _ in range(4)] == [False, False, False, True]
    assert not any(stop("u", {"loss": float(step)}) for step in range(8))
    high = TrialPlateauStopper("acc", std=0.01, num_results=2, grace_period=2, metric_threshold=0.5, mode="max")
    assert not any(high("low", {"acc": 0.1}) for _ in range(5)) and any(high("high", {"acc": 0.9}) for _ in range(5))


def test_a_plateau_of_the_best_stops_all() -> None:
    stop = ExperimentPlateauStopper("loss", std=0.001, top=3, mode="min", patience=1)
    answers = [stop("t", {"loss": loss}) for loss in (9.0, 1.0, 1.0, 1.0, 5.0)]
    assert answers == [False, False, False, False, True] and stop.stop_all()


def test_a_timeout_counts_from_the_first_look_and_its_rest_survives_pickling() -> None:
    stop = TimeoutStopper(timedelta(hours=1))
    assert 3590 < stop.remaining_s() <= 3600 and not stop.stop_all() and not stop("t", {})
    assert 3590 < pickle.loads(pickle.dumps(stop)).remaining_s() <= 3600
    assert TimeoutStopper(0).stop_all()


def test_combined_stoppers_stop_when_any_does_and_all_of_them_count() -> None:
    count = MaximumIterationStopper(3)
    both = CombinedStopper(FunctionStopper(lambda trial_id, result: result["x"] > 5), count, TimeoutStopper(60))
    assert [both("t", {"x": x}) for x in (9, 1, 1)] == [True, False, True]
    assert not both.stop_all() and 0 < both.remaining_s() <= 60


def test_everything_that_users_give_becomes_a_stopper() -> None:
    assert isinstance(as_stopper(None), NoopStopper) and not as_stopper(None).stop_all()
    assert as_stopper([{"a": 1}, lambda trial_id, result: False])("t", {"a": 1})
    with pytest.raises(ValueError, match="stop=3: a dict of metrics"):
        as_stopper(3)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: TimeoutStopper("x"), "timeout must be"), (lambda: TrialPlateauStopper("a", metric_threshold=1.0), "metric_threshold needs mode"),
    (lambda: ExperimentPlateauStopper("a", mode="best"), "mode must be"), (lambda: ExperimentPlateauStopper("a", top=1), "top must be"),
    (lambda: ExperimentPlateauStopper("a", std=0.0), "std must be"), (lambda: ExperimentPlateauStopper("a", patience=-1), "patience must be"),
    (lambda: as_stopper({"a": "x"}), r"stop\['a'\]='x': a number is wanted"),
])  # fmt: skip
def test_wrong_arguments_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_stopper_must_define_its_two_methods() -> None:
    with pytest.raises(NotImplementedError, match="Stopper must define __call__"):
        Stopper()("t", {})
    with pytest.raises(NotImplementedError, match="Stopper must define stop_all"):
        Stopper().stop_all()
