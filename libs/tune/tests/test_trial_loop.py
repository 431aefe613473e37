"""The trial loop: one event in, effects out; and whole experiments on a virtual clock."""

import random
import time

import pytest
from shoal import tune
from shoal.tune.execution.events import (
    ClusterChanged,
    ContinueTrial,
    DeleteCheckpoint,
    Interrupted,
    Record,
    SaveTrial,
    StartTrial,
    StopTrial,
    Tell,
    Tick,
    TrialClosed,
    TrialEnded,
    TrialFailed,
    TrialReported,
    TrialSaved,
)
from shoal.tune.execution.loop import TrialLoop
from shoal.tune.execution.policy import LoopPolicy
from shoal.tune.resources import Ledger, PlacementGroupFactory
from shoal.tune.schedulers import FIFOScheduler, TrialScheduler
from shoal.tune.search import BasicVariantGenerator, Searcher
from shoal.tune.stopper import Stopper, as_stopper
from shoal.tune.testing import Simulation
from shoal.tune.trial import Trial

SPACE = {"x": tune.uniform(0, 1)}


def make_loop(scheduler: TrialScheduler | None = None, searcher: Searcher | None = None, cpus: int = 2, stopper: Stopper | None = None, need: int = 1,
              wanted: dict | None = None, trials: tuple = (), **policy) -> TrialLoop:  # fmt: skip
    searcher = searcher or BasicVariantGenerator(random_state=0)
    policy.setdefault("num_samples", 3)
    searcher.set_search_properties("loss", "min", SPACE, num_samples=policy["num_samples"])

    def trial(number: int, trial_id: str, config: dict) -> Trial:
        return Trial(trial_id, config, number=number, path=f"/v/{trial_id}", placement=PlacementGroupFactory([{"CPU": need}]))

    return TrialLoop(searcher, scheduler or FIFOScheduler(), LoopPolicy(**policy), trial, stopper=stopper, ledger=Ledger({"CPU": cpus}), wanted=wanted,
        trials=trials,
                     suggested=len(trials))  # fmt: skip


def only(effects: list, *kinds: type) -> list:
    return [effect for effect in effects if isinstance(effect, kinds)]


ORDERS = (StartTrial, ContinueTrial, SaveTrial, StopTrial, DeleteCheckpoint)


def report(trial_id: str, loss: float = 1.0, iteration: int = 1, now: float = 1.0, checkpoint: str | None = None, **more) -> TrialReported:
    return TrialReported(trial_id, {"loss": loss, "training_iteration": iteration, **more}, now, checkpoint)


def hooks(effects: list) -> list[str]:
    return [effect.hook for effect in only(effects, Tell)]


# -- one event at a time -----------------------------------------------------------------------------------------------


def test_trials_start_while_there_is_room_and_no_further() -> None:
    loop = make_loop(cpus=2)
    effects = loop.handle(Tick(0))
    assert [effect.trial.trial_id for effect in only(effects, *ORDERS)] == ["t_00000", "t_00001"]
    assert loop.handle(Tick(1)) == []


def test_a_report_is_written_down_then_answered() -> None:
    loop = make_loop(cpus=1)
    loop.handle(Tick(0))
    effects = loop.handle(report("t_00000"))
    assert [type(effect) for effect in effects] == [Record, Tell, ContinueTrial]
    assert effects[0].entry["result"]["loss"] == 1.0


def test_a_trial_that_ends_makes_room_for_the_next() -> None:
    loop = make_loop(cpus=1)
    loop.handle(Tick(0))
    effects = loop.handle(TrialEnded("t_00000", 1))
    assert hooks(effects) == ["on_trial_complete", "on_trial_start"]
    assert [effect.trial.trial_id for effect in only(effects, *ORDERS)] == ["t_00001"]
    assert loop.get_trial("t_00000").status == Trial.TERMINATED


def test_a_stopped_trial_keeps_its_place_until_its_runner_is_gone() -> None:
    loop = make_loop(cpus=1, stopper=as_stopper({"training_iteration": 2}))
    loop.handle(Tick(0))
    loop.handle(report("t_00000"))
    effects = loop.handle(report("t_00000", iteration=2))
    assert only(effects, *ORDERS) == [StopTrial("t_00000", False)]
    assert loop.get_trial("t_00000").last_result["done"]
    assert [effect.trial.trial_id for effect in only(loop.handle(TrialClosed("t_00000", 3)), *ORDERS)] == ["t_00001"]


def test_a_result_that_says_done_stops_the_trial() -> None:
    loop = make_loop(cpus=1)
    loop.handle(Tick(0))
    assert only(loop.handle(report("t_00000", done=True)), *ORDERS) == [StopTrial("t_00000", False)]


def test_a_failed_trial_is_an_error_and_the_others_go_on() -> None:
    loop = make_loop(cpus=1)
    loop.handle(Tick(0))
    error = ValueError("x")
    effects = loop.handle(TrialFailed("t_00000", error, "text", 1))
    trial = loop.get_trial("t_00000")
    assert trial.status == Trial.ERROR and trial.error is error and trial.error_text == "text"
    assert "on_trial_error" in hooks(effects) and only(effects, StartTrial)[0].trial.trial_id == "t_00001"


def test_a_failed_trial_with_failures_left_goes_on_from_its_checkpoint() -> None:
    loop = make_loop(cpus=1, max_failures=1)
    loop.handle(Tick(0))
    loop.handle(report("t_00000", iteration=4, checkpoint="/v/t_00000/c0"))
    start = only(loop.handle(TrialFailed("t_00000", ValueError(), "", 1)), StartTrial)[0]
    assert start.trial.trial_id == "t_00000" and start.restore.path == "/v/t_00000/c0" and start.restore.progress == {"training_iteration": 4}
    assert start.copy_to is None and start.next_checkpoint == 1
    loop.handle(TrialFailed("t_00000", ValueError(), "", 2))
    assert loop.get_trial("t_00000").status == Trial.ERROR


@pytest.mark.parametrize("fail_fast", [True, "raise"])
def test_fail_fast_ends_the_others_and_leaves_them_unfinished(fail_fast) -> None:
    loop = make_loop(cpus=2, fail_fast=fail_fast)
    loop.handle(Tick(0))
    error = ValueError("x")
    effects = loop.handle(TrialFailed("t_00000", error, "", 1))
    assert only(effects, *ORDERS) == [StopTrial("t_00001", False)]
    loop.handle(TrialClosed("t_00001", 2))
    assert loop.finished and not loop.get_trial("t_00001").is_finished() and loop.error is (error if fail_fast == "raise" else None)


def test_an_interrupt_ends_the_runners_saves_classes_and_starts_nothing() -> None:
    loop = make_loop(cpus=2, can_save=True)
    loop.handle(Tick(0))
    assert only(loop.handle(Interrupted(1)), *ORDERS) == [StopTrial("t_00000", True), StopTrial("t_00001", True)]
    late = loop.handle(report("t_00000", iteration=3, checkpoint="/v/t_00000/late"))
    assert [type(effect) for effect in late] == [Record, Record, Tell, Tell] and loop.get_trial("t_00000").latest.path == "/v/t_00000/late"
    effects = loop.handle(TrialClosed("t_00000", 2, "/v/t_00000/c")) + loop.handle(TrialClosed("t_00001", 2))
    assert not only(effects, *ORDERS) and loop.finished
    assert loop.get_trial("t_00000").latest.path == "/v/t_00000/c"


def test_the_time_budget_ends_all_and_is_asked_for_in_time() -> None:
    loop = make_loop(cpus=2, time_budget_s=10, num_samples=-1)
    loop.handle(Tick(100))
    assert loop.next_deadline() == 110
    loop.handle(report("t_00000", now=105))
    effects = loop.handle(Tick(110))
    assert {effect.trial_id for effect in only(effects, StopTrial)} == {"t_00000", "t_00001"}
    for trial_id in ("t_00000", "t_00001"):
        loop.handle(TrialClosed(trial_id, 111))
    assert loop.finished and all(trial.status == Trial.TERMINATED for trial in loop.get_trials())


def test_more_room_in_the_cluster_is_used_at_once() -> None:
    loop = make_loop(cpus=1)
    loop.handle(Tick(0))
    assert len(only(loop.handle(ClusterChanged({"CPU": 3}, 1)), StartTrial)) == 2


def test_a_trial_larger_than_the_cluster_starts_alone_so_that_the_cluster_says_why() -> None:
    loop = make_loop(cpus=1, need=8)
    assert len(only(loop.handle(Tick(0)), StartTrial)) == 1


def test_max_concurrent_holds() -> None:
    loop = make_loop(cpus=9, max_concurrent=2)
    assert len(only(loop.handle(Tick(0)), StartTrial)) == 2


def test_a_missing_metric_names_the_reported_ones_and_ends_the_experiment() -> None:
    loop = make_loop(cpus=2, wanted={"acuracy": "TuneConfig(metric=...)"})
    loop.handle(Tick(0))
    effects = loop.handle(report("t_00000", accuracy=1))
    assert {effect.trial_id for effect in only(effects, StopTrial)} == {"t_00000", "t_00001"}
    assert isinstance(loop.error, tune.MissingMetricError) and isinstance(loop.error, ValueError)
    assert "reported no 'acuracy', which TuneConfig(metric=...) needs; it reported: accuracy, loss" in str(loop.error)


def test_without_strict_metrics_a_missing_one_is_passed_over() -> None:
    loop = make_loop(cpus=2, wanted={"acuracy": "x"}, strict_metrics=False)
    loop.handle(Tick(0))
    assert only(loop.handle(report("t_00000")), *ORDERS) == [ContinueTrial("t_00000")]


def test_only_the_best_checkpoints_and_the_latest_stay() -> None:
    loop = make_loop(cpus=1, keep=2, score_attribute="loss", score_order="min")
    loop.handle(Tick(0))
    deleted = []
    for step, loss in enumerate((3.0, 1.0, 2.0, 9.0, 8.0)):
        deleted += [effect.path for effect in only(loop.handle(report("t_00000", loss, step + 1, checkpoint=f"c{step}")), DeleteCheckpoint)]
    assert deleted == ["c0", "c3"] and [one.path for one in loop.get_trial("t_00000").checkpoints] == ["c1", "c2", "c4"]


def test_a_checkpoint_that_a_start_reads_is_not_deleted_meanwhile() -> None:
    class Copying(FIFOScheduler):
        def on_trial_result(self, tune_controller, trial, result):
            if trial.trial_id == "t_00001":
                tune_controller.exploit(trial, tune_controller.get_trial("t_00000"), {"x": 7})
                return self.NOOP
            return self.CONTINUE

    loop = make_loop(Copying(), cpus=2, keep=1, num_samples=2)
    loop.handle(Tick(0))
    loop.handle(report("t_00000", checkpoint="c0"))
    assert only(loop.handle(report("t_00001")), *ORDERS) == [StopTrial("t_00001", False)]
    assert not only(loop.handle(report("t_00000", checkpoint="c1")), DeleteCheckpoint)
    start = only(loop.handle(TrialClosed("t_00001", 2)), StartTrial)[0]
    assert start.restore.path == "c0" and start.copy_to == "/v/t_00001/checkpoint_000000" and start.trial.config == {"x": 7}
    assert not only(loop.handle(report("t_00000", checkpoint="c2")), DeleteCheckpoint)[1:]
    loop.handle(report("t_00001", iteration=2))  # it has begun: c0 is free to go
    assert "c0" in [effect.path for effect in only(loop.handle(report("t_00000", checkpoint="c3")), DeleteCheckpoint)]
    loop.check()


def test_a_copy_that_fails_is_tried_from_the_source_again() -> None:
    class Copying(FIFOScheduler):
        done = False

        def on_trial_result(self, tune_controller, trial, result):
            if trial.trial_id == "t_00001" and not self.done:
                self.done = True
                tune_controller.exploit(trial, tune_controller.get_trial("t_00000"), {"x": 7})
                return self.NOOP
            return self.CONTINUE

    loop = make_loop(Copying(), cpus=2, num_samples=2, max_failures=3)
    loop.handle(Tick(0))
    loop.handle(report("t_00000", checkpoint="c0"))
    loop.handle(report("t_00001"))
    loop.handle(TrialClosed("t_00001", 2))
    start = only(loop.handle(TrialFailed("t_00001", OSError("disk"), "", 3)), StartTrial)[0]
    assert start.restore.path == "c0" and start.copy_to == "/v/t_00001/checkpoint_000001"
    loop.check()


def test_a_save_comes_before_the_next_step() -> None:
    class Saving(FIFOScheduler):
        def on_trial_result(self, tune_controller, trial, result):
            tune_controller.save_trial(trial)
            return self.CONTINUE

    loop = make_loop(Saving(), cpus=1, can_save=True)
    loop.handle(Tick(0))
    assert only(loop.handle(report("t_00000")), *ORDERS) == [SaveTrial("t_00000")]
    effects = loop.handle(TrialSaved("t_00000", "c0", 1))
    assert only(effects, *ORDERS) == [ContinueTrial("t_00000")] and "on_trial_save" in hooks(effects)


def test_a_report_that_crosses_a_stop_counts_for_nothing() -> None:
    loop = make_loop(cpus=1, time_budget_s=5)
    loop.handle(Tick(0))
    loop.handle(Tick(6))
    assert loop.handle(report("t_00000", now=7)) == []


@pytest.mark.parametrize("event", [TrialEnded("t_00000", 7), TrialFailed("t_00000", ValueError(), "", 7), TrialClosed("t_00000", 7)])
def test_whatever_the_last_word_of_a_stopped_trial_is_it_is_gone(event) -> None:
    loop = make_loop(cpus=1, time_budget_s=5)
    loop.handle(Tick(0))
    loop.handle(Tick(6))
    loop.handle(event)
    assert loop.finished and loop.get_trial("t_00000").status == Trial.TERMINATED
    loop.check()


def test_a_searcher_that_says_nothing_while_nothing_runs_is_told_on() -> None:
    class Silent(BasicVariantGenerator):
        def suggest(self, trial_id):
            return None

    loop = make_loop(searcher=Silent(), suggest_patience_s=30)
    loop.handle(Tick(0))
    assert loop.next_deadline() == 30 and not loop.finished
    loop.handle(Tick(30))
    assert loop.finished and "stands still" in str(loop.error) and "Silent suggests nothing" in str(loop.error)


def test_a_scheduler_that_answers_nonsense_is_named() -> None:
    class Nonsense(FIFOScheduler):
        def on_trial_result(self, tune_controller, trial, result):
            return "MAYBE"

    loop = make_loop(Nonsense())
    loop.handle(Tick(0))
    with pytest.raises(tune.TuneError, match=r"Nonsense.on_trial_result returned 'MAYBE'"):
        loop.handle(report("t_00000"))


def test_trials_of_an_earlier_run_come_first_and_finished_ones_never() -> None:
    old = (Trial("t_00000", {"x": 1}, status=Trial.TERMINATED), Trial("t_00001", {"x": 2}, number=1, status=Trial.RUNNING))
    loop = make_loop(trials=old, num_samples=3, cpus=1)
    assert [effect.trial.trial_id for effect in only(loop.handle(Tick(0)), StartTrial)] == ["t_00001"]
    assert [effect.trial.trial_id for effect in only(loop.handle(TrialEnded("t_00001", 1)), StartTrial)] == ["t_00002"]


# -- whole experiments -------------------------------------------------------------------------------------------------


def test_every_trial_runs_to_its_end_within_the_cluster() -> None:
    simulation = Simulation(space=SPACE, policy=LoopPolicy(num_samples=40), cpus=3, iterations=5)
    done = simulation.run()
    assert len(done) == 40 and all(len(reports) == 5 for reports in simulation.reports.values()) and simulation.max_running == 3
    assert simulation.effects["StartTrial"] == 40


def test_ten_thousand_trials_pass_through_one_loop() -> None:
    began = time.perf_counter()
    simulation = Simulation(space=SPACE, policy=LoopPolicy(num_samples=10_000), cpus=64, iterations=1, check_every=0)
    assert len(simulation.run()) == 10_000
    assert 10_000 / (time.perf_counter() - began) > 200  # trials a second; it is several thousands on an idle machine


@pytest.mark.parametrize("seed", range(20))
def test_whatever_fails_at_random_the_experiment_ends_and_the_invariants_hold(seed: int) -> None:
    rng = random.Random(seed)
    from shoal.tune.schedulers import ASHAScheduler, HyperBandScheduler, MedianStoppingRule, PopulationBasedTraining

    scheduler = rng.choice([
        FIFOScheduler(), HyperBandScheduler(max_t=9), ASHAScheduler(max_t=20, grace_period=2, reduction_factor=3), MedianStoppingRule("training_iteration",
            grace_period=2, hard_stop=False),
        PopulationBasedTraining("training_iteration", perturbation_interval=3, hyperparam_mutations=SPACE, synch=rng.random() < 0.5),
    ])  # fmt: skip
    policy = LoopPolicy(
        num_samples=rng.randint(5, 60), max_failures=rng.choice([0, 1, 3]), can_save=rng.random() < 0.5, save_at_end=rng.random() < 0.5,
        keep=rng.choice([None, 1, 2]),
        time_budget_s=rng.choice([None, None, 40.0]), max_concurrent=rng.choice([None, 3]),
    )  # fmt: skip
    simulation = Simulation(
        space=SPACE, scheduler=scheduler, policy=policy, cpus=rng.randint(1, 12), iterations=20, checkpoints=rng.random() < 0.8,
        duration=lambda trial, at: rng.uniform(0.1, 3), fails=lambda trial, at: rng.random() < 0.03,
    )  # fmt: skip
    assert all(trial.is_finished() for trial in simulation.run())


@pytest.mark.parametrize("stop_at", [0.5, 3.5, 7.5, 30.5])
def test_a_run_that_is_broken_off_and_taken_up_makes_the_same_trials(stop_at: float) -> None:
    first = Simulation(space=SPACE, policy=LoopPolicy(num_samples=12), cpus=3, iterations=4)
    first.run(until=stop_at)
    first.send(Interrupted(first.now))
    second = Simulation(space=SPACE, policy=LoopPolicy(num_samples=12), cpus=3, iterations=4, known_trials=first.loop.get_trials())
    second.existing = first.existing
    second.searcher.set_state(first.searcher.get_state())
    ended = {trial.trial_id for trial in first.loop.get_trials() if trial.is_finished()}
    done = second.run()
    whole = Simulation(space=SPACE, policy=LoopPolicy(num_samples=12), cpus=3, iterations=4).run()
    assert {trial.trial_id: trial.config for trial in done} == {trial.trial_id: trial.config for trial in whole}
    assert not ended & set(second.started)
