"""Random histories: whatever the order of calls, answers, deaths and restarts, the invariants hold, and in the end the store and the raylets agree."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
from gcs_states import actor_id, actor_request, group, group_id
from gcs_world import ModelNode, S, World
from shoal_gcs.state import Refused
from shoal_gcs.state import events as on
from shoal_gcs.v1 import gcs_pb2 as pb

pytestmark = pytest.mark.timeout(120)

SEEDS = 60
STEPS = 300
MAX_NODES = 5
STRATEGIES = ["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]


class History:
    """One random history. The same seed gives the same one."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = World()
        self.actors = 0
        self.groups = 0
        self.world.add_node(4)
        self.moves = {
            self.create_actor: 6,
            self.kill_actor: 2,
            self.create_group: 3,
            self.remove_group: 2,
            self.call_arrives: 20,
            self.answer_arrives: 20,
            self.start_ends: 10,
            self.worker_dies: 2,
            self.node_reports: 4,
            self.node_joins: 2,
            self.node_dies: 1,
            self.store_restarts: 0.5,
            self.time_passes: 3,
            self.settle: 0.5,
        }

    def run(self) -> None:
        moves, weights = list(self.moves), list(self.moves.values())
        for _ in range(STEPS):
            self.random.choices(moves, weights)[0]()
            self.check_invariants()
        self.settle()

    def _node(self) -> ModelNode | None:
        nodes = list(self.world.nodes.values())
        return self.random.choice(nodes) if nodes else None

    # -- what users wish

    def create_actor(self) -> None:
        self.actors += 1
        fields: dict[str, Any] = {"max_restarts": self.random.choice([0, 1, -1])}
        held = self.random.randint(0, 3)
        if self.groups and self.random.random() < 0.3:
            fields["placement_group_id"] = group_id(self.random.randint(1, self.groups))
            held = 0  # what a bundle holds is the raylet's own matter
        self.world.tell(on.ActorRequested(actor_request(self.actors, cpus=max(1, held), held=held, **fields)))

    def kill_actor(self) -> None:
        if self.actors:
            self.world.tell(on.ActorKillRequested(actor_id(self.random.randint(1, self.actors)), self.random.random() < 0.7, True, "wish"))

    def create_group(self) -> None:
        self.groups += 1
        bundles: list[float] = [self.random.randint(1, 3) for _ in range(self.random.randint(1, 3))]
        self.world.tell(on.GroupRequested(group(self.groups, bundles, self.random.choice(STRATEGIES))))

    def remove_group(self) -> None:
        if self.groups:
            with contextlib.suppress(Refused):  # it was removed before a restart
                self.world.tell(on.GroupRemovalRequested(pb.PlacementGroupQuery(placement_group_id=group_id(self.random.randint(1, self.groups)))))

    # -- what the network and the nodes do

    def call_arrives(self) -> None:
        node = self._node()
        if node is not None and node.calls:
            node.work()

    def answer_arrives(self) -> None:
        if self.world.answers:
            self.world.tell(self.world.answers.pop(self.random.randrange(len(self.world.answers))))

    def start_ends(self) -> None:
        node = self._node()
        starting = [key for key, runner in node.actors.items() if not runner.alive] if node is not None else []
        if node is not None and starting:
            node.finish_start(self.random.choice(starting), self.random.choice([S.STARTED] * 5 + [S.INIT_RAISED, S.WORKER_DIED]))

    def worker_dies(self) -> None:
        node = self._node()
        alive = [key for key, runner in node.actors.items() if runner.alive] if node is not None else []
        if node is not None and alive:
            node.end_actor(self.random.choice(alive), S.WORKER_DIED, report=True)

    def node_reports(self) -> None:
        node = self._node()
        if node is not None:
            node.report()

    def node_joins(self) -> None:
        if len(self.world.nodes) < MAX_NODES:
            self.world.add_node(self.random.randint(1, 4))

    def node_dies(self) -> None:
        node = self._node()
        if node is not None:
            self.world.kill_node(node)

    def store_restarts(self) -> None:
        self.world.restart_store()

    def time_passes(self) -> None:
        self.world.rig.now_ms += self.random.randint(100, 3000)
        for node in self.world.nodes.values():
            self.world.tell(on.NodeBeat(pb.HeartbeatRequest(node_id=node.node_id)))
        self.world.tell(on.TimePassed())

    def settle(self) -> None:
        self.world.settle()
        self.check_agreement()

    # -- what must always hold

    def check_invariants(self) -> None:
        cluster = self.world.rig.cluster
        for node in cluster.nodes.living.values():
            assert all(units >= 0 for units in node.view.available.values())
            assert all(units > 0 for units in node.in_flight.values())
        lives: set[bytes] = set()
        for model in self.world.nodes.values():
            assert model.free() >= 0
            living = {key for key, runner in model.actors.items() if runner.alive}
            assert not living & lives, "an actor lives twice"
            lives |= living
        for node_id, there in cluster.actors._on_node.items():
            assert all(cluster.actors.lives[key].record.node_id == node_id for key in there)
        for life in cluster.actors.lives.values():
            assert life.record.state != pb.ACTOR_DEAD
            assert life.placing_on is None or life.record.state != pb.ACTOR_ALIVE

    # -- what must hold when nothing is under way

    def check_agreement(self) -> None:
        cluster, nodes = self.world.rig.cluster, self.world.nodes.values()
        for node in nodes:
            seen = cluster.nodes.living[node.node_id]
            assert seen.in_flight == {}
            assert seen.view.available["CPU"] == node.free()
        running = {key: (node.node_id, runner.incarnation, runner.worker_id) for node in nodes for key, runner in node.actors.items()}
        on_record = {actor.actor_id: (actor.node_id, actor.incarnation, actor.worker_id) for actor in cluster.actors if actor.state == pb.ACTOR_ALIVE}
        assert running == on_record
        bundles = {(key, node.node_id) for node in nodes for key in node.bundles}
        committed = {(key, node.node_id) for node in nodes for key in node.committed}
        wanted = {
            ((made.placement_group_id, bundle.index), bundle.node_id)
            for made in cluster.groups
            if made.state in (pb.PG_CREATED, pb.PG_RESCHEDULING)
            for bundle in made.bundles
            if bundle.node_id
        }
        assert bundles == committed == wanted
        for life in cluster.actors.lives.values():
            assert life.record.state == pb.ACTOR_ALIVE or life.record.pending_reason, "it waits without a reason"
        for made in cluster.groups:
            assert made.state in (pb.PG_CREATED, pb.PG_REMOVED) or made.pending_reason


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_random_history_keeps_the_invariants_and_ends_in_agreement(seed: int) -> None:
    History(seed).run()
