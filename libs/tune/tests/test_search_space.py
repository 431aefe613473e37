"""Domains draw what they say, and spaces are put together right."""

import math
import random
from collections import Counter

import pytest
from shoal import tune
from shoal.tune.search.sample import Domain
from shoal.tune.search.variants import SpaceError, draw, evaluated, flat_params

N = 400


def values(domain: Domain) -> list:
    rng = random.Random(7)
    return [domain.draw(rng) for _ in range(N)]


@pytest.mark.parametrize(
    ("domain", "low", "high", "kind"),
    [
        (tune.uniform(-2, 3), -2, 3, float), (tune.quniform(0, 1, 0.1), 0, 1, float), (tune.loguniform(1e-4, 1e-1), 1e-4, 1e-1, float),
        (tune.qloguniform(1e-3, 1, 1e-3), 1e-3, 1, float), (tune.randint(2, 9), 2, 8, int), (tune.qrandint(10, 100, 10), 10, 100, int),
        (tune.lograndint(1, 1000), 1, 999, int), (tune.qlograndint(2, 64, 2), 2, 64, int),
    ],
)  # fmt: skip
def test_a_domain_stays_in_its_bounds_and_reaches_both_ends(domain: Domain, low: float, high: float, kind: type) -> None:
    drawn = values(domain)
    assert all(type(value) is kind and low <= value <= high and domain.is_valid(value) for value in drawn)
    spread = (math.log(max(drawn)) - math.log(min(drawn))) / (math.log(high) - math.log(low)) if low > 0 else (max(drawn) - min(drawn)) / (high - low)
    assert spread > 0.85
    assert not domain.is_valid(high + 1) and not domain.is_valid("x")


def test_quantized_values_are_multiples_without_noise() -> None:
    assert {round(value * 10) / 10 for value in values(tune.quniform(0, 1, 0.1))} == set(values(tune.quniform(0, 1, 0.1)))
    assert all(value % 10 == 0 for value in values(tune.qrandint(10, 100, 10)))
    assert all(value % 0.5 == 0 for value in values(tune.qrandn(0, 3, 0.5)))


def test_a_logarithmic_scale_gives_each_order_of_magnitude_the_same_share() -> None:
    counts = Counter(math.floor(math.log10(value)) for value in values(tune.loguniform(1e-4, 1)))
    assert set(counts) == {-4, -3, -2, -1} and min(counts.values()) > N / 8


def test_normal_values_have_their_mean_and_deviation() -> None:
    drawn = values(tune.randn(10, 2))
    mean = sum(drawn) / N
    assert abs(mean - 10) < 0.4 and abs(math.sqrt(sum((value - mean) ** 2 for value in drawn) / N) - 2) < 0.4


def test_sample_gives_one_value_or_a_list() -> None:
    assert tune.choice(["a"]).sample() == "a"
    assert tune.randint(0, 5).sample(size=3, random_state=1) == tune.randint(0, 5).sample(size=3, random_state=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tune.uniform(3, 1), "uniform: lower must be less than upper, got 3 and 1"), (lambda: tune.loguniform(0, 1),
            "loguniform: lower must be greater"),
        (lambda: tune.quniform(0, 1, 0.3), "quniform: upper=1 must be a multiple of q=0.3"), (lambda: tune.uniform("a", 1), "uniform: lower must be a finite"),
        (lambda: tune.uniform(0, float("inf")), "finite"), (lambda: tune.randint(0.5, 3), "randint: lower must be a whole number"),
        (lambda: tune.qrandint(0, 10, 0), "q must be greater than 0"), (lambda: tune.randn(0, 0), "randn: sd must be greater than 0"),
        (lambda: tune.loguniform(1, 10, base=1), "base must be greater than 1"), (lambda: tune.choice([]), "at least one category"),
        (lambda: tune.grid_search([]), "at least one value"),
    ],
)  # fmt: skip
def test_a_wrong_domain_is_refused_where_it_is_made(make, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        make()


def test_sample_from_wants_a_function() -> None:
    with pytest.raises(TypeError, match="a function of the configuration is needed, got int"):
        tune.sample_from(3)


# -- spaces ------------------------------------------------------------------------------------------------------------


def test_nested_spaces_lists_and_constants_are_kept() -> None:
    space = {"model": {"lr": tune.uniform(0, 1), "name": "mlp"}, "sizes": [tune.randint(1, 3), 7], "pair": (1, 2)}
    config = draw(space, random.Random(1))
    assert 0 <= config["model"]["lr"] <= 1 and config["model"]["name"] == "mlp" and config["sizes"][0] in (1, 2) and config["sizes"][1] == 7
    assert config["pair"] == (1, 2) and isinstance(space["model"]["lr"], Domain)


@pytest.mark.parametrize("function", [lambda config: config["a"] * 2, lambda config: config.a * 2, lambda spec: spec.config.a * 2,
    lambda spec: spec.config["a"] * 2])
def test_functions_see_the_rest_of_the_configuration(function) -> None:
    config = draw({"b": tune.sample_from(function), "a": tune.randint(1, 100)}, random.Random(2))
    assert config["b"] == config["a"] * 2


def test_functions_may_build_on_functions_and_on_grids() -> None:
    space = {"c": tune.sample_from(lambda c: c["b"] + 1), "b": tune.sample_from(lambda c: c["a"] + 1), "a": tune.grid_search([10])}
    config = draw(space, random.Random(0), {("a",): 10})
    assert config == {"a": 10, "b": 11, "c": 12}


def test_functions_that_wait_for_each_other_are_named() -> None:
    with pytest.raises(SpaceError, match="wait for each other: a for b; b for a"):
        draw({"a": tune.sample_from(lambda c: c["b"]), "b": tune.sample_from(lambda c: c["a"])}, random.Random(0))


def test_a_function_that_raises_is_named() -> None:
    with pytest.raises(SpaceError, match="the function of model/x raised ZeroDivisionError"):
        draw({"model": {"x": tune.sample_from(lambda c: 1 / 0)}}, random.Random(0))


def test_conditional_spaces_draw_only_what_the_choice_has() -> None:
    space = {"optimizer": tune.choice([{"kind": "sgd", "momentum": tune.uniform(0, 1)}, {"kind": "adam", "beta": tune.uniform(0.8, 1)}])}
    rng = random.Random(3)
    kinds = set()
    for _ in range(40):
        optimizer = draw(space, rng)["optimizer"]
        kinds.add(optimizer["kind"])
        assert set(optimizer) == ({"kind", "momentum"} if optimizer["kind"] == "sgd" else {"kind", "beta"})
        assert isinstance(optimizer.get("momentum", 0.0), float)
    assert kinds == {"sgd", "adam"}


def test_the_evaluated_parameters_are_those_that_were_drawn() -> None:
    space = {"a": {"b": tune.uniform(0, 1)}, "c": 3}
    config = draw(space, random.Random(0))
    assert evaluated(space, config) == {"a/b": config["a"]["b"]}
    assert flat_params(config) == {"a/b": config["a"]["b"], "c": 3}
