"""The autoscaling policy, on a clock of the test's own."""

import pytest
from shoal.serve.autoscaling import QUEUE_REPORT_LIFE_S, Autoscaler
from shoal.serve.config import AutoscalingConfig
from shoal.serve.exceptions import ServeConfigError


def policy(**options):
    given = {"max_replicas": 10, "target_ongoing_requests": 2, "look_back_period_s": 30, "upscale_delay_s": 30, "downscale_delay_s": 600, **options}
    return Autoscaler(AutoscalingConfig(**given))


def load(scaler, now, *ongoing):
    for index, value in enumerate(ongoing):
        scaler.record_running(now, f"r{index}", value)


def test_the_wish_follows_the_ratio_to_the_target():
    scaler = policy()
    load(scaler, 0, 4, 4)
    assert scaler.wanted(0, 2) == 4
    scaler = policy()
    load(scaler, 0, 1, 1, 1, 1)
    assert scaler.wanted(0, 4) == 2


def test_it_stays_between_its_limits():
    scaler = policy(min_replicas=2, max_replicas=3)
    load(scaler, 0, 100, 100)
    assert scaler.wanted(0, 2) == 3
    assert policy(min_replicas=2).wanted(0, 4) == 2


def test_a_wish_is_followed_only_when_it_lasts():
    scaler = policy(look_back_period_s=5)
    for now in range(0, 30, 5):
        load(scaler, now, 8)
        assert scaler.decide(now, 1) == 1
    load(scaler, 30, 8)
    assert scaler.decide(30, 1) == 4


def test_a_wish_that_is_interrupted_begins_anew():
    scaler = policy(look_back_period_s=5)
    load(scaler, 0, 8)
    assert scaler.decide(0, 1) == 1
    load(scaler, 20, 2)
    assert scaler.decide(20, 1) == 1
    load(scaler, 29, 8)
    assert scaler.decide(29, 1) == 1
    load(scaler, 35, 8)
    assert scaler.decide(35, 1) == 1
    load(scaler, 59.5, 8)
    assert scaler.decide(59.5, 1) == 4


def test_the_last_replica_has_a_delay_of_its_own():
    scaler = policy(min_replicas=0, downscale_delay_s=10, downscale_to_zero_delay_s=60)
    assert scaler.decide(0, 3) == 3
    assert scaler.decide(10, 3) == 1
    assert scaler.decide(59, 1) == 1
    assert scaler.decide(60, 1) == 0


def test_from_zero_it_starts_at_once_when_somebody_waits():
    scaler = policy(min_replicas=0)
    assert scaler.decide(0, 0) == 0
    scaler.record_queued(1, "proxy", 3)
    assert scaler.decide(1, 0) == 2


def test_queues_of_callers_that_fell_silent_are_forgotten():
    scaler = policy()
    scaler.record_queued(0, "gone", 10)
    assert scaler.load(QUEUE_REPORT_LIFE_S) == 10
    assert scaler.load(QUEUE_REPORT_LIFE_S + 0.1) == 0


def test_it_never_scales_to_zero_while_there_are_requests():
    scaler = policy(min_replicas=0, target_ongoing_requests=100)
    load(scaler, 0, 0.1)
    assert scaler.wanted(0, 1) == 1


def test_factors_make_it_gentler_and_it_still_gets_there():
    scaler = policy(upscaling_factor=0.5)
    load(scaler, 0, 8)
    assert scaler.wanted(0, 1) == 3
    scaler = policy(downscaling_factor=0.01, look_back_period_s=1000)
    load(scaler, 0, 0)
    current, now = 5, 0
    while current > 1:
        now += 700
        before, current = current, scaler.decide(now, current)
        now += 700
        current = scaler.decide(now, current)
        assert current < before
        assert now < 20_000


def test_samples_are_averaged_over_the_look_back_period():
    scaler = policy(look_back_period_s=10)
    for now, value in ((0, 100), (5, 2), (12, 4)):
        load(scaler, now, value)
    assert scaler.load(12) == 3
    highest = policy(look_back_period_s=10, aggregation_function="max")
    for now, value in ((5, 2), (12, 4)):
        load(highest, now, value)
    assert highest.load(12) == 4


def test_wrong_settings_are_refused_by_name():
    for options, message in (
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas=3 is more than max_replicas=2"),
        ({"max_replicas": 2, "initial_replicas": 5}, "initial_replicas=5 does not lie between"),
        ({"target_ongoing_requests": 0}, "target_ongoing_requests must be more than 0"),
        ({"upscale_delay_s": -1}, "upscale_delay_s must be at least 0"),
        ({"aggregation_function": "sum"}, "aggregation_function must be mean, max or min"),
    ):
        with pytest.raises(ServeConfigError, match=message):
            AutoscalingConfig(**options)
