"""Random and grid search, Optuna, and the wrappers; each held to the contract."""

import pickle

import pytest
from shoal import tune
from shoal.tune.search import BasicVariantGenerator, ConcurrencyLimiter, Repeater, Searcher
from shoal.tune.search.optuna import OptunaSearch
from shoal.tune.search.variants import SpaceError
from shoal.tune.testing import check_searcher

SPACE = {"x": tune.uniform(0, 1), "n": tune.randint(1, 5)}


def optuna_limited() -> Searcher:
    return ConcurrencyLimiter(OptunaSearch(seed=1), max_concurrent=3)


def batches() -> Searcher:
    return ConcurrencyLimiter(BasicVariantGenerator(random_state=1), max_concurrent=4, batch=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: BasicVariantGenerator(random_state=1), lambda: BasicVariantGenerator(max_concurrent=2), lambda: OptunaSearch(seed=1), optuna_limited, batches,
        lambda: Repeater(BasicVariantGenerator(random_state=1), repeat=3), lambda: Repeater(OptunaSearch(seed=1), repeat=2),
    ],
)  # fmt: skip
def test_a_searcher_keeps_the_contract(make) -> None:
    check_searcher(make, SPACE)


def all_of(searcher: Searcher, space: dict, num_samples: int = 1) -> list:
    searcher.set_search_properties("loss", "min", space, num_samples=num_samples)
    found = []
    while isinstance(config := searcher.suggest(f"t{len(found)}"), dict):
        found.append(config)
        assert len(found) < 1000
    return found


# -- random and grid ---------------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_and_each_sample_goes_through_it() -> None:
    space = {"a": tune.grid_search([1, 2]), "b": {"c": tune.grid_search(["x", "y", "z"])}, "r": tune.uniform(0, 1)}
    searcher = BasicVariantGenerator(random_state=0)
    found = all_of(searcher, space, num_samples=2)
    assert [(config["a"], config["b"]["c"]) for config in found] == [(a, c) for a in (1, 2) for c in "xyz"] * 2
    assert len({config["r"] for config in found}) == 12
    assert searcher.total_samples(2) == 12


def test_constant_grid_search_draws_once_for_each_sample() -> None:
    space = {"a": tune.grid_search([1, 2, 3]), "r": tune.uniform(0, 1)}
    found = all_of(BasicVariantGenerator(constant_grid_search=True, random_state=0), space, num_samples=2)
    assert len({config["r"] for config in found[:3]}) == 1 and len({config["r"] for config in found}) == 2


def test_points_come_first_and_fix_grids() -> None:
    space = {"a": tune.grid_search([1, 2]), "b": tune.uniform(0, 1), "m": {"c": tune.choice([1, 2])}}
    searcher = BasicVariantGenerator(points_to_evaluate=[{"a": 2, "b": 0.5}, {"m/c": 2}], random_state=0)
    found = all_of(searcher, space, num_samples=3)
    assert found[0]["a"] == 2 and found[0]["b"] == 0.5
    assert [config["a"] for config in found[1:3]] == [1, 2] and all(config["m"]["c"] == 2 for config in found[1:3])
    assert len(found) == searcher.total_samples(3) == 1 + 2 + 2


def test_a_point_outside_of_the_space_is_named() -> None:
    with pytest.raises(SpaceError, match=r"points_to_evaluate: bb is not in the search space, which has a"):
        all_of(BasicVariantGenerator(points_to_evaluate=[{"bb": 1}]), {"a": tune.uniform(0, 1)})


def test_the_same_seed_draws_the_same_and_no_seed_draws_others() -> None:
    assert all_of(BasicVariantGenerator(random_state=5), SPACE, 5) == all_of(BasicVariantGenerator(random_state=5), SPACE, 5)
    assert all_of(BasicVariantGenerator(), SPACE, 5) != all_of(BasicVariantGenerator(), SPACE, 5)


def test_a_restored_generator_goes_on_where_it_was() -> None:
    space = {"g": tune.grid_search([1, 2]), "x": tune.uniform(0, 1)}
    whole = all_of(BasicVariantGenerator(random_state=9), space, 4)
    first = BasicVariantGenerator(random_state=9)
    first.set_search_properties("loss", "min", space, num_samples=4)
    for number in range(3):
        first.suggest(f"t{number}")
    second = BasicVariantGenerator()
    second.set_search_properties("loss", "min", space, num_samples=4)
    second.set_state(pickle.loads(pickle.dumps(first.get_state())))
    assert [second.suggest(f"u{number}") for number in range(5)] == whole[3:]
    assert second.suggest("end") == Searcher.FINISHED


def test_numpy_generators_seed_it() -> None:
    np = pytest.importorskip("numpy")
    draws = [all_of(BasicVariantGenerator(random_state=np.random.default_rng(3)), SPACE, 3) for _ in range(2)]
    assert draws[0] == draws[1]


# -- wrappers ----------------------------------------------------------------------------------------------------------


def test_the_limiter_waits_for_an_end() -> None:
    limited = ConcurrencyLimiter(BasicVariantGenerator(random_state=0), max_concurrent=2)
    limited.set_search_properties("loss", "min", SPACE, num_samples=9)
    assert isinstance(limited.suggest("a"), dict) and isinstance(limited.suggest("b"), dict) and limited.suggest("c") is None
    limited.on_trial_complete("a", {"loss": 1})
    assert isinstance(limited.suggest("c"), dict)


def test_a_batch_tells_its_results_together() -> None:
    told = []

    class Listening(BasicVariantGenerator):
        def on_trial_complete(self, trial_id, result=None, error=False):
            told.append(trial_id)

    limited = ConcurrencyLimiter(Listening(random_state=0), max_concurrent=2, batch=True)
    limited.set_search_properties("loss", "min", SPACE, num_samples=9)
    limited.suggest("a"), limited.suggest("b")
    limited.on_trial_complete("a", {"loss": 1})
    assert not told and limited.suggest("c") is None
    limited.on_trial_complete("b", {"loss": 1})
    assert told == ["a", "b"] and isinstance(limited.suggest("c"), dict)


def test_the_repeater_tells_the_mean_of_the_repetitions() -> None:
    told = []

    class Listening(BasicVariantGenerator):
        def on_trial_complete(self, trial_id, result=None, error=False):
            told.append((trial_id, result["loss"]))

    repeater = Repeater(Listening(random_state=0), repeat=3)
    repeater.set_search_properties("loss", "min", {"x": tune.uniform(0, 1)}, num_samples=2)
    configs = [repeater.suggest(f"t{number}") for number in range(3)]
    assert len({config["x"] for config in configs}) == 1 and [config["__trial_index__"] for config in configs] == [0, 1, 2]
    for number, loss in enumerate((1.0, 2.0, 6.0)):
        repeater.on_trial_complete(f"t{number}", {"loss": loss})
    assert told == [("t0", 3.0)]


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ConcurrencyLimiter(BasicVariantGenerator(), 0), "max_concurrent must be at least 1, got 0"), (lambda: Repeater(BasicVariantGenerator(), 0),
        "repeat must"),
    (lambda: BasicVariantGenerator(max_concurrent=-1), "max_concurrent must be 0"), (lambda: Searcher("a", "up"), "mode must be 'min' or 'max', got 'up'"),
    (lambda: Searcher(["a"], "min"), "must both be lists"), (lambda: tune.create_searcher("bayes"), "no search algorithm 'bayes': known are optuna"),
])  # fmt: skip
def test_wrong_arguments_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# -- Optuna ------------------------------------------------------------------------------------------------------------


def test_optuna_comes_closer_to_the_best_than_chance() -> None:
    def best(searcher: Searcher) -> float:
        searcher.set_search_properties("loss", "min", {"m": {"x": tune.uniform(-10, 10)}, "y": tune.loguniform(1e-3, 10), "c": 1}, num_samples=60)
        losses = []
        for number in range(60):
            config = searcher.suggest(f"t{number}")
            assert config["c"] == 1
            losses.append((config["m"]["x"] - 2) ** 2 + (config["y"] - 1) ** 2)
            searcher.on_trial_complete(f"t{number}", {"loss": losses[-1]})
        return sum(losses[-20:]) / 20

    assert best(OptunaSearch(seed=3)) < best(BasicVariantGenerator(random_state=3)) / 3


def test_optuna_takes_points_known_values_and_several_objectives() -> None:
    asked = OptunaSearch(points_to_evaluate=[{"x": 0.75}], seed=0)
    asked.set_search_properties("loss", "min", {"x": tune.uniform(0, 1)}, num_samples=3)
    assert asked.suggest("a") == {"x": 0.75}
    known = OptunaSearch(points_to_evaluate=[{"x": 0.25}], evaluated_rewards=[1.5], seed=0)
    known.set_search_properties("loss", "min", {"x": tune.uniform(0, 1)}, num_samples=3)
    assert known._study.best_params == {"x": 0.25} and known._study.best_value == 1.5
    with pytest.raises(ValueError, match="1 evaluated_rewards for 2 points"):
        OptunaSearch(points_to_evaluate=[{"x": 0.25}, {"x": 0.5}], evaluated_rewards=[1.0])
    both = OptunaSearch(metric=["a", "b"], mode=["min", "max"], seed=0)
    both.set_search_properties(None, None, {"x": tune.uniform(0, 1)}, num_samples=3)
    both.suggest("t")
    both.on_trial_complete("t", {"a": 1.0, "b": 2.0})
    assert both._study.trials[0].values == [1.0, 2.0]


def test_optuna_goes_on_with_its_study_after_a_restore() -> None:
    def made() -> OptunaSearch:
        search = OptunaSearch(seed=0)
        search.set_search_properties("loss", "min", SPACE, num_samples=9)
        return search

    first = made()
    first.suggest("a"), first.suggest("b")
    first.on_trial_complete("a", {"loss": 1.0})
    second = made()
    second.set_state(pickle.loads(pickle.dumps(first.get_state())))
    second.on_trial_complete("b", {"loss": 3.0})
    second.on_trial_restore("c", {"x": 0.125, "n": 2})
    second.on_trial_complete("c", {"loss": 0.5})
    assert [trial.value for trial in second._study.trials] == [1.0, 3.0, 0.5] and second._study.best_params == {"x": 0.125, "n": 2}


def test_optuna_searches_a_space_that_a_function_defines() -> None:
    def space(trial):
        if trial.suggest_categorical("kind", ["a", "b"]) == "a":
            trial.suggest_float("only_a", 0, 1)
        return {"constant": 7}

    search = OptunaSearch(space, metric="loss", mode="min", seed=0)
    search.set_search_properties(None, None, {}, num_samples=9)
    for number in range(8):
        config = search.suggest(f"t{number}")
        assert config["constant"] == 7 and ("only_a" in config) == (config["kind"] == "a")


@pytest.mark.parametrize(("space", "message"), [
    ({"g": tune.grid_search([1])}, "g: OptunaSearch cannot go through a grid"), ({"r": {"n": tune.randn()}}, "r/n: OptunaSearch cannot search"),
    ({"c": tune.choice([{"a": tune.uniform(0, 1)}, {}])}, "domains inside of choices"), ({"q": tune.qloguniform(1, 10, 1)}, "both logarithmic and rounded"),
])  # fmt: skip
def test_what_optuna_cannot_search_is_named(space: dict, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        OptunaSearch(metric="loss", mode="min").set_search_properties(None, None, space, num_samples=1)
