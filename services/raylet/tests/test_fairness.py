"""Random worlds: nothing is lent twice, nothing goes below zero, all of it returns, nobody starves."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raylet_world import THERE, World, node, only, spec
from shoal_raylet import effects as do
from shoal_raylet import events as on

pytestmark = pytest.mark.timeout(120)
GPUS = {"0": 10_000, "1": 10_000}
SHAPES = [{}, {"cpus": 0}, {"cpus": 0.5}, {"cpus": 3}, {"resources": {"GPU": 0.5}}, {"resources": {"GPU": 2}}, {"strategy": "SPREAD"}, {"depth": 3}]


@dataclass
class Client:
    id: bytes
    job: bytes
    classes: dict[int, int]  # class -> units not granted yet


class Play:
    """Clients that demand, run for a while, block, return, die; workers that die; another node that answers as it likes."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = World(cpus=4, resources={"GPU": 2}, gpus=GPUS, worker_limit=12, hold_s=1.0, prestart=2)
        self.world.feed(on.Started())
        self.clients: dict[bytes, Client] = {}
        self.held: dict[tuple[bytes, int], tuple[bytes, float, bytes]] = {}  # (node, lease) -> client, ends at, worker
        self.far = 0
        self.granted = 0
        self.groups = 0
        self.reserving: dict[int, bytes] = {}  # request -> group
        self.reserved: dict[bytes, float] = {}  # group -> ends at
        self.next_client = 0

    def take(self, effects: list[do.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, do.GrantLease):
                client = self.clients[effect.client]
                assert client.classes[effect.class_id] > 0, "more was granted than wished"
                client.classes[effect.class_id] -= 1
                key = (effect.node_id, effect.lease_id)
                assert key not in self.held
                self.held[key] = (effect.client, self.world.now + self.random.uniform(0, 0.5), effect.worker_id)
                self.granted += 1
            elif isinstance(effect, do.RequestRemoteLease):
                self.answer_far(effect)
            elif isinstance(effect, (do.KillWorker, do.ExitWorker)):
                self.end_worker(effect.worker_id)
            elif isinstance(effect, do.AnswerBundles):
                self.answered(effect)
            elif isinstance(effect, do.RefuseLease):
                raise AssertionError(f"refused: {effect}")

    def answer_far(self, effect: do.RequestRemoteLease) -> None:
        self.far += 1
        yes = self.random.random() < 0.5
        self.take(self.world.feed(on.RemoteLeaseAnswered(effect.request, yes, self.far, b"far%013d" % self.far, THERE, "h:1", "busy")))

    def reserve(self) -> None:
        """As the GCS does: in vain now and then, and then again."""
        self.groups += 1
        self.ask_for(b"group%011d" % self.groups, self.random.choice([1, 2, 4]))

    def ask_for(self, group: bytes, cpus: int) -> None:
        request = self.world.request()
        self.reserving[request] = group
        self.take(self.world.feed(on.BundlesRequested(request, group, {0: {"CPU": cpus * 10_000}}, 1.0)))

    def answered(self, effect: do.AnswerBundles) -> None:
        group = self.reserving.pop(effect.request)
        if not effect.reason:
            self.reserved[group] = self.world.now + self.random.uniform(0, 0.5)

    def end_worker(self, worker_id: bytes) -> None:
        self.held = {key: row for key, row in self.held.items() if row[2] != worker_id}
        far = worker_id.startswith(b"far")
        self.take(self.world.feed(on.WorkerDiedElsewhere(worker_id)) if far else self.world.die(worker_id))

    def new_client(self) -> None:
        self.next_client += 1
        client = Client(b"client%010d" % self.next_client, self.random.choice([b"job1", b"job2", b"job3"]), {})
        self.clients[client.id] = client

    def demand(self) -> None:
        client = self.random.choice(list(self.clients.values()))
        class_id = self.random.randrange(len(SHAPES))
        new = class_id not in client.classes
        client.classes[class_id] = client.classes.get(class_id, 0) + self.random.randint(1, 4)
        wanted = spec(job=client.job, **SHAPES[class_id]) if new else None
        self.take(self.world.demand(client.id, class_id, client.classes[class_id], wanted))

    def step(self) -> None:
        choice = self.random.random()
        if not self.clients or choice < 0.1:
            self.new_client()
        elif choice < 0.5:
            self.demand()
        elif choice < 0.55:
            client = self.random.choice(list(self.clients))
            del self.clients[client]
            running = frozenset(row[2] for row in self.held.values() if row[0] == client and self.random.random() < 0.5)
            self.held = {key: row for key, row in self.held.items() if row[0] != client}
            self.take(self.world.feed(on.ClientGone(client, running)))
        elif choice < 0.6 and self.held:
            self.end_worker(self.random.choice(list(self.held.values()))[2])
        elif choice < 0.7 and self.held:
            worker = self.random.choice(list(self.held.values()))[2]
            self.take(self.world.feed(self.random.choice([on.WorkerBlocked, on.WorkerUnblocked])(worker)))
        elif choice < 0.72:
            self.reserve()
        elif choice < 0.75:
            self.take(self.world.feed(on.ViewChanged([node(THERE, {"CPU": self.random.randint(0, 2)}, {"CPU": 2})])))
        self.pass_time()

    def pass_time(self) -> None:
        self.take(self.world.tick(0.05))
        for key, (_client, ends, _worker) in list(self.held.items()):
            if ends <= self.world.now and key in self.held:
                del self.held[key]
                self.take(self.world.feed(on.LeaseReturned(key[1], key[0])))
        for group, ends in list(self.reserved.items()):
            if ends <= self.world.now:
                del self.reserved[group]
                self.take(self.world.feed(on.BundlesCancelled(group)))

    def finish(self) -> None:
        """No new wishes: everything that was wished is granted, and everything comes back."""
        for _ in range(3000):
            if not self.held and not self.reserved and not self.reserving and not any(any(client.classes.values()) for client in self.clients.values()):
                break
            self.pass_time()
        left = {client.id: client.classes for client in self.clients.values() if any(client.classes.values())}
        assert not left and not self.held, f"starved: {left}; {self.world.core.queue.all()}"
        assert not self.reserving and not self.reserved
        core = self.world.core
        assert core.pool.free == core.pool.total and core.pool.gpus == GPUS
        assert not core.leases and not core.borrowed and not core.asked and not core.unmanned and not core.held_by_job and not core.by_client


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_nothing_is_lent_twice_all_of_it_returns_and_nobody_starves(seed):
    play = Play(seed)
    for _ in range(120):
        play.step()
    play.finish()
    assert play.granted == len(only(play.world.log, do.GrantLease))


def test_the_same_story_gives_the_same_decisions():
    logs = []
    for _ in range(2):
        play = Play(7)
        for _ in range(100):
            play.step()
        logs.append([repr(effect) for effect in play.world.log if not isinstance(effect, (do.BeginLease, do.RequestRemoteLease))])
    assert logs[0] == logs[1] and len(logs[0]) > 50
