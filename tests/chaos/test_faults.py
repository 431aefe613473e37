"""One fault of each kind against real processes on machines of their own, under work whose answer is known."""

from contextlib import contextmanager

import pytest
from chaos.faults import FAULTS, kinds
from chaos.machines import HEAD, HOME, RECORDS, STANDBY, VICTIMS, Machines, wait_until
from chaos.namespaces import Refused
from chaos.network import Network
from chaos.run import Run
from chaos.schedule import Event

# Short, so that what must outlast it does so soon.
LEASE_S = 3.0
VICTIM = VICTIMS[0]

pytestmark = pytest.mark.timeout(240)


@contextmanager
def cluster(numbers):
    try:
        network = Network(numbers, 1)
    except Refused as why:
        pytest.skip(f"no network of several machines can be made here: {why}")
    try:
        try:
            machines = Machines(network, lease_s=LEASE_S)
        except Refused as why:
            pytest.skip(f"no machines can be made here: {why}")
        try:
            run = Run(machines, 1, print)
            try:
                yield run
            finally:
                run.close()
        finally:
            machines.close()
    finally:
        network.close()


@pytest.fixture(scope="module")
def run():
    with cluster([HEAD, HOME, *VICTIMS]) as made:
        yield made


def do(run, kind):
    machine = {"head": HEAD, "home": HOME}.get(kind.on, VICTIM)
    return run.one(Event(len(run.report.outcomes) + 1, 0.0, kind.name, machine, kind.lasts_s[0] * 1.1, 0))


@pytest.mark.parametrize("kind", kinds(LEASE_S), ids=lambda kind: kind.name)
def test_the_work_goes_on_and_its_answers_are_right(run, kind):
    failed = len(run.report.failures)
    outcome = do(run, kind)
    assert not run.report.failures[failed:]
    assert not outcome.skipped or (kind.name == "memory short" and run.machines.all[VICTIM].group is None)
    assert (outcome.noticed_s is not None) or not FAULTS[kind.name].loses_node


def test_nothing_is_left_of_the_work_nor_of_the_machines(run):
    failed = len(run.report.failures)
    wait_until(lambda: {row["round"] for row in run.report.rounds} >= {"tasks", "shuffle", "counting", "larger_than_memory"}, "a round of every kind")
    assert run.finish(lambda: print(run.machines.complaints())).failures[failed:] == []


def test_a_head_whose_machine_is_lost_is_followed_by_the_one_that_stands_by():
    with cluster([HEAD, HOME, STANDBY, RECORDS]) as run:
        [kind] = kinds(LEASE_S, ["head lost"], standby=True)
        outcome = do(run, kind)
        assert not run.report.failures and outcome.noticed_s is not None
        assert run.machines.leading() == STANDBY
        assert run.finish(lambda: print(run.machines.complaints())).failures == []
