"""Schedulers: each held to the contract, and to what it is for."""

import pickle

import pytest
from shoal import tune
from shoal.tune.execution.policy import LoopPolicy
from shoal.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
    create_scheduler,
)
from shoal.tune.schedulers.pbt import explore
from shoal.tune.testing import Simulation, check_scheduler
from shoal.tune.trial import Trial

SPACE = {"x": tune.uniform(0, 1)}
T = "training_iteration"


def pbt(**more) -> PopulationBasedTraining:
    return PopulationBasedTraining(T, perturbation_interval=3, hyperparam_mutations={"x": tune.uniform(0, 1)}, **more)


@pytest.mark.parametrize(
    "make",
    [
        FIFOScheduler, lambda: HyperBandScheduler(max_t=9), lambda: HyperBandScheduler(max_t=8, reduction_factor=2, stop_last_trials=False),
        lambda: ASHAScheduler(max_t=9, reduction_factor=3),
        lambda: ASHAScheduler(max_t=12, brackets=3, reduction_factor=2, stop_last_trials=False),
        lambda: MedianStoppingRule(T, grace_period=2, min_samples_required=2), lambda: MedianStoppingRule(T, grace_period=1, hard_stop=False, min_time_slice=2),
        pbt, lambda: pbt(synch=True), lambda: pbt(burn_in_period=4, quantile_fraction=0.5),
    ],
)  # fmt: skip
def test_a_scheduler_keeps_the_contract(make) -> None:
    check_scheduler(make)


def test_the_conformance_suite_finds_a_scheduler_that_never_starts_some_trials() -> None:
    class Forgetful(FIFOScheduler):
        def choose_trial_to_run(self, tune_controller):
            return next((trial for trial in tune_controller.waiting_trials(Trial.PENDING) if trial.number != 3), None)

    with pytest.raises(AssertionError, match="nothing happens any more, but the loop has not finished"):
        check_scheduler(Forgetful)


def test_the_conformance_suite_finds_a_searcher_that_forgets_its_state() -> None:
    from shoal.tune.search import Searcher
    from shoal.tune.testing import check_searcher

    class Stateless(Searcher):
        def suggest(self, trial_id):
            return {"x": 1}

        def on_trial_complete(self, trial_id, result=None, error=False):
            pass

    with pytest.raises(NotImplementedError, match=r"Stateless must define get_state\(\)"):
        check_searcher(Stateless, {})


# -- ASHA --------------------------------------------------------------------------------------------------------------


def test_asha_spends_its_time_on_the_good_trials() -> None:
    simulation = Simulation(space=SPACE, scheduler=ASHAScheduler(max_t=27, reduction_factor=3), policy=LoopPolicy(num_samples=81), iterations=100)
    done = simulation.run()
    steps = {trial.trial_id: len(simulation.reports[trial.trial_id]) for trial in done}
    assert max(steps.values()) == 27 and sum(steps.values()) < 81 * 27 / 4
    far = [abs(trial.config["x"] - 0.5) for trial in done if steps[trial.trial_id] == 27]
    early = [abs(trial.config["x"] - 0.5) for trial in done if steps[trial.trial_id] == 1]
    assert sum(far) / len(far) < sum(early) / len(early) / 1.5


def test_asha_stops_only_at_its_rungs() -> None:
    scheduler = ASHAScheduler(max_t=30, grace_period=2, reduction_factor=3)
    simulation = Simulation(space=SPACE, scheduler=scheduler, policy=LoopPolicy(num_samples=40), iterations=99)
    simulation.run()
    assert {len(reports) for reports in simulation.reports.values()} <= {2, 6, 18, 30}


def test_asha_keeps_the_share_that_the_reduction_factor_says() -> None:
    scheduler = ASHAScheduler(metric="loss", mode="max", max_t=16, reduction_factor=4)
    kept = 0
    for number in range(100):
        trial = Trial(f"t{number}", {})
        scheduler.on_trial_add(None, trial)
        kept += scheduler.on_trial_result(None, trial, {T: 1, "loss": float(number * 37 % 100)}) == TrialScheduler.CONTINUE
    assert 20 <= kept <= 35


def test_asha_deals_trials_out_to_brackets() -> None:
    scheduler = ASHAScheduler(metric="loss", mode="min", max_t=81, reduction_factor=3, brackets=3)
    for number in range(300):
        scheduler.on_trial_add(None, Trial(f"t{number}", {}))
    counts = [list(scheduler.bracket_of.values()).count(bracket) for bracket in range(3)]
    assert all(counts) and counts[0] > counts[1] > counts[2]
    assert [[rung.milestone for rung in bracket.rungs][-1] for bracket in scheduler.brackets] == [1, 3, 9]


# -- HyperBand ---------------------------------------------------------------------------------------------------------


def test_hyperband_halves_whole_brackets() -> None:
    simulation = Simulation(space=SPACE, scheduler=HyperBandScheduler(max_t=27), policy=LoopPolicy(num_samples=27 + 12 + 6 + 4), cpus=5, iterations=99)
    done = simulation.run()
    furthest = {trial.trial_id: trial.last_result[T] for trial in done}
    of_first = sorted((furthest[trial.trial_id] for trial in done[:27]), reverse=True)
    assert of_first == [27, *[9] * 2, *[3] * 6, *[1] * 18]
    assert [furthest[trial.trial_id] for trial in done[45:]] == [27] * 4
    winner = next(trial for trial in done[:27] if furthest[trial.trial_id] == 27)
    assert winner.config == min((trial.config for trial in done[:27]), key=lambda config: abs(config["x"] - 0.5))


def test_hyperband_halves_a_bracket_that_did_not_become_full() -> None:
    simulation = Simulation(space=SPACE, scheduler=HyperBandScheduler(max_t=9), policy=LoopPolicy(num_samples=5), cpus=2, iterations=99)
    assert sorted(trial.last_result[T] for trial in simulation.run()) == [1, 1, 1, 1, 9]


# -- median stopping ---------------------------------------------------------------------------------------------------


def test_the_median_rule_stops_the_worse_half_after_its_grace() -> None:
    scheduler = MedianStoppingRule(T, grace_period=3, min_samples_required=3)
    simulation = Simulation(space=SPACE, scheduler=scheduler, policy=LoopPolicy(num_samples=30), cpus=6, iterations=20)
    done = simulation.run()
    lengths = [len(simulation.reports[trial.trial_id]) for trial in done]
    assert min(lengths) >= 3 and scheduler.num_stopped >= 5 and lengths.count(20) >= 5
    stopped = [trial.config["x"] for trial in done if len(simulation.reports[trial.trial_id]) < 20]
    ended = [trial.config["x"] for trial in done if len(simulation.reports[trial.trial_id]) == 20]
    assert sum(abs(x - 0.5) for x in stopped) / len(stopped) > sum(abs(x - 0.5) for x in ended) / len(ended)


# -- PBT ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("can_save", [False, True])
@pytest.mark.parametrize("synch", [False, True])
@pytest.mark.parametrize("cpus", [2, 8])
def test_pbt_makes_the_worst_copies_of_the_best(can_save: bool, synch: bool, cpus: int) -> None:
    scheduler = pbt(synch=synch, quantile_fraction=0.25)
    scheduler.rng.seed(1)
    simulation = Simulation(space=SPACE, scheduler=scheduler, policy=LoopPolicy(num_samples=8, can_save=can_save), cpus=cpus, iterations=15)
    done = simulation.run()
    copies = [record for record in simulation.records if record["t"] == "ckpt" and "from" in record]
    assert scheduler.num_perturbations >= len(copies) >= 3
    for copy in copies:
        assert not copy["from"].startswith(f"/virtual/{copy['id']}/") and copy["path"].startswith(f"/virtual/{copy['id']}/")
    assert all(trial.status == Trial.TERMINATED for trial in done)
    configs = [record for record in simulation.records if record["t"] == "config"]
    assert len(configs) == scheduler.num_perturbations


def test_pbt_without_checkpoints_changes_nothing_and_says_why(caplog) -> None:
    simulation = Simulation(space=SPACE, scheduler=pbt(), policy=LoopPolicy(num_samples=4), checkpoints=False)
    simulation.run()
    assert simulation.scheduler.num_perturbations == 0 and "has no checkpoint" in caplog.text


def test_synchronous_pbt_keeps_all_at_the_same_iteration() -> None:
    seen = []
    simulation = Simulation(
        space=SPACE, scheduler=pbt(synch=True), policy=LoopPolicy(num_samples=6), cpus=2, iterations=12,
        duration=lambda trial, at: 1 + trial.number,
    )  # fmt: skip
    handle = simulation.loop.handle

    def watch(event):
        effects = handle(event)
        at = [trial.last_result.get(T, 0) for trial in simulation.loop.get_live_trials()]
        seen.append(max(at, default=0) // 3.0001 - min(at, default=0) // 3.0001 if len(at) == 6 and min(at) else 0)
        return effects

    simulation.loop.handle = watch
    simulation.run()
    assert max(seen) <= 1


def test_explore_takes_neighbours_factors_and_new_values() -> None:
    import random

    rng = random.Random(0)
    mutations = {"a": [1, 2, 3], "b": tune.uniform(0, 10), "n": {"c": lambda: 5}, "w": tune.randint(1, 100)}
    seen_a, seen_b = set(), set()
    for _ in range(60):
        config, changes = explore({"a": 2, "b": 1.0, "n": {"c": 10}, "w": 10, "other": 1}, mutations, 0.0, (1.2, 0.8), None, rng)
        seen_a.add(config["a"])
        seen_b.add(config["b"])
        assert config["n"]["c"] in (12, 8) and config["w"] in (12, 8) and config["other"] == 1 and "n/c" in changes
    assert seen_a == {1, 3} and seen_b == {1.2, 0.8}
    assert explore({"a": 2}, {"a": [7]}, 1.0, (1.2, 0.8), None, rng)[0] == {"a": 7}
    assert explore({"a": 2}, {"a": [1, 2]}, 0.0, (1.2, 0.8), lambda config: {**config, "z": 1}, rng)[0]["z"] == 1


def test_pbt_fills_in_what_the_space_does_not_have() -> None:
    scheduler = PopulationBasedTraining(T, metric="loss", mode="min", hyperparam_mutations={"lr": tune.uniform(1, 2), "m": {"k": [3]}})
    trial = Trial("t", {})
    scheduler.on_trial_add(None, trial)
    assert 1 <= trial.config["lr"] <= 2 and trial.config["m"] == {"k": 3}


# -- all ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ASHAScheduler(max_t=0), "max_t must be greater than 0"),
    (lambda: ASHAScheduler(max_t=2, grace_period=3), "grace_period=3 must not be greater than max_t=2"),
    (lambda: ASHAScheduler(reduction_factor=1), "reduction_factor must be greater than 1"), (lambda: ASHAScheduler(mode="best"), "mode must be 'min' or 'max'"),
    (lambda: HyperBandScheduler(reduction_factor=1), "reduction_factor must be"), (lambda: HyperBandScheduler(max_t=0), "max_t must be"),
    (lambda: ASHAScheduler(brackets=0), "brackets must be at least 1"), (lambda: MedianStoppingRule(min_samples_required=0), "min_samples_required"),
    (lambda: PopulationBasedTraining(), "needs hyperparam_mutations"), (lambda: pbt(quantile_fraction=0.6), "between 0 and 0.5"),
    (lambda: PopulationBasedTraining(hyperparam_mutations={"m": {"x": 3}}), "m/x must be a list of values, a domain, or a function, got 3"),
    (lambda: PopulationBasedTraining(hyperparam_mutations={"x": tune.grid_search([1])}), "x must not be a grid"),
    (lambda: create_scheduler("bohb"), "no scheduler 'bohb': known are asha"),
])  # fmt: skip
def test_wrong_arguments_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_state_is_saved_in_files_and_comes_back(tmp_path) -> None:
    first = ASHAScheduler(metric="loss", mode="min")
    trial = Trial("t", {})
    first.on_trial_add(None, trial)
    first.on_trial_result(None, trial, {T: 1, "loss": 3.0})
    first.save(tmp_path / "state")
    second = ASHAScheduler()
    second.restore(tmp_path / "state")
    assert second.metric == "loss" and second.brackets[0].rungs[-1].values == [-3.0]
    assert pickle.dumps(second.get_state())
