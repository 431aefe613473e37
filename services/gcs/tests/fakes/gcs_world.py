"""Raylets and a network in memory, for random histories: calls reach a node in order, answers come back in any order, and everything may die."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from gcs_states import CPU, Rig, node, node_id
from shoal_gcs.state import effects as do
from shoal_gcs.state import events as on
from shoal_gcs.state.events import BundleStep as Step
from shoal_gcs.v1 import gcs_pb2 as pb

S = on.StartStatus
Call = do.StartActor | do.KillActor | do.ChangeBundles | do.FinishJobOn


@dataclass
class Runner:
    """An actor's worker at a raylet."""

    incarnation: int
    worker_id: bytes
    held: int
    alive: bool = False
    waiting: list[do.StartActor] = field(default_factory=list)


@dataclass
class World:
    """What the shell and the raylets do, without either."""

    rig: Rig = field(default_factory=Rig)
    nodes: dict[bytes, ModelNode] = field(default_factory=dict)
    answers: list[on.Event] = field(default_factory=list)
    made: int = 0
    workers: int = 0

    def tell(self, event: on.Event) -> None:
        self.dispatch(self.rig(event, rank=(self.made * 0.37) % 1))

    def dispatch(self, effects: list[do.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Call):
                self.nodes[effect.node_id].calls.append(effect)

    def add_node(self, cpus: int) -> None:
        self.made += 1
        one = ModelNode(self, self.made, cpus)
        self.nodes[one.node_id] = one
        one.register()

    def kill_node(self, one: ModelNode) -> None:
        """The process is gone, and the control store learns it."""
        del self.nodes[one.node_id]
        self.answers = [event for event in self.answers if getattr(event, "node_id", b"") != one.node_id]
        self.tell(on.NodeRefused(one.node_id))

    def restart_store(self) -> None:
        """Every call and answer under way is lost; what raylets have begun goes on."""
        self.answers.clear()
        for one in self.nodes.values():
            one.calls.clear()
            for runner in one.actors.values():
                runner.waiting.clear()
        self.rig = self.rig.restarted()
        for one in self.nodes.values():
            one.register()

    def settle(self) -> None:
        """Everything under way arrives, everything that starts has started, every node reports."""
        for _ in range(10_000):
            busy = False
            for one in list(self.nodes.values()):
                while one.calls:
                    one.work()
                    busy = True
                for actor_id, runner in list(one.actors.items()):
                    if not runner.alive:
                        one.finish_start(actor_id, S.STARTED)
                        busy = True
            while self.answers:
                self.tell(self.answers.pop(0))
                busy = True
            if not busy:
                for one in self.nodes.values():
                    one.report()
                if not any(one.calls for one in self.nodes.values()):
                    return
        raise AssertionError("it never settles")


class ModelNode:
    def __init__(self, world: World, number: int, cpus: int) -> None:
        self.world = world
        self.number = number
        self.node_id = node_id(number)
        self.cpus = cpus
        self.calls: deque[Call] = deque()
        self.actors: dict[bytes, Runner] = {}
        self.bundles: dict[tuple[bytes, int], int] = {}
        self.committed: set[tuple[bytes, int]] = set()

    def free(self) -> int:
        return self.cpus * CPU - sum(self.bundles.values()) - sum(runner.held for runner in self.actors.values())

    def register(self) -> None:
        record = node(self.number, self.cpus)
        record.available["CPU"] = self.free()
        living = tuple(self.actors)
        self.world.tell(on.NodeRegistered(record, living, tuple({group for group, _ in self.bundles})))

    def report(self) -> None:
        self.world.tell(on.NodeBeat(pb.HeartbeatRequest(node_id=self.node_id, resources_changed=True, available={"CPU": self.free()})))

    def work(self) -> None:
        """Does the oldest call that has arrived."""
        call = self.calls.popleft()
        if isinstance(call, do.StartActor):
            self._start(call)
        elif isinstance(call, do.KillActor):
            self.end_actor(call.actor_id, S.WORKER_DIED, report=True)
        elif isinstance(call, do.ChangeBundles):
            done = self._change(call)
            self.world.answers.append(on.BundlesChanged(self.node_id, call.step, call.group_id, call.attempt, done, "" if done else "no room"))

    def _start(self, call: do.StartActor) -> None:
        actor_id, held = call.actor.actor_id, call.actor.resources.get("CPU", 0)
        known = self.actors.get(actor_id)
        if known is not None and known.incarnation > call.incarnation:
            self._answer(call, S.WORKER_DIED)
            return
        if known is not None and known.incarnation < call.incarnation:
            self.end_actor(actor_id, S.WORKER_DIED, report=True)
            known = None
        if known is not None:
            if known.alive:
                self._answer(call, S.STARTED, known.worker_id)
            else:
                known.waiting.append(call)
        elif held > self.free():
            self._answer(call, S.NO_RESOURCES)
        else:
            self.world.workers += 1
            self.actors[actor_id] = Runner(call.incarnation, b"w" + self.world.workers.to_bytes(15, "little"), held, waiting=[call])

    def finish_start(self, actor_id: bytes, status: S) -> None:
        runner = self.actors[actor_id]
        if status is S.STARTED:
            runner.alive = True
            waiting, runner.waiting = runner.waiting, []
            for call in waiting:
                self._answer(call, S.STARTED, runner.worker_id)
        else:
            self.end_actor(actor_id, status, report=False)

    def end_actor(self, actor_id: bytes, status: S, *, report: bool) -> None:
        runner = self.actors.pop(actor_id, None)
        if runner is None:
            return
        for call in runner.waiting:
            self._answer(call, status, runner.worker_id)
        if report or runner.alive:
            request = pb.ReportWorkerDeathRequest(worker_id=runner.worker_id, node_id=self.node_id, code=1, cause="ended")
            self.world.answers.append(on.WorkerDied(request))

    def _answer(self, call: do.StartActor, status: S, worker_id: bytes = b"") -> None:
        self.world.answers.append(on.ActorStartAnswered(call.actor.actor_id, call.incarnation, self.node_id, status, worker_id, 1))

    def _change(self, call: do.ChangeBundles) -> bool:
        keys = [(call.group_id, bundle.index) for bundle in call.bundles]
        if call.step is Step.CANCEL:
            for key in keys or [key for key in self.bundles if key[0] == call.group_id]:
                self.bundles.pop(key, None)
                self.committed.discard(key)
            return True
        if call.step is Step.COMMIT:
            if any(key not in self.bundles for key in keys):
                return False
            self.committed.update(keys)
            return True
        needs = {key: bundle.resources["CPU"] for key, bundle in zip(keys, call.bundles, strict=True) if key not in self.bundles}
        if sum(needs.values()) > self.free():
            return False
        self.bundles.update(needs)
        if call.step is Step.PREPARE_AND_COMMIT:
            self.committed.update(keys)
        return True
