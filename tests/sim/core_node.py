"""A process of the simulation: the real protocol, and a program on it: a driver, a worker, an actor."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shoal._core.driven import EVENT_KINDS, KIND_BYTES, KIND_ERROR, KIND_STORED, Driven, Run
from shoal_base.errors import Code
from shoal_gcs.state import events as gcs_on
from shoal_gcs.v1 import gcs_pb2 as gcs
from shoal_raylet.v1 import raylet_pb2 as pb
from world import Connection, Link, World

if TYPE_CHECKING:
    from raylet_node import RayletNode

UNIT = 10_000
TIMER_S = 0.005
LEAVE_S = 0.05
SILENT_S = 9.5  # for so long at most nobody answers one process's dials to another one: for 10 s no program notices
APART_S = 1.5  # dials so long after the last one in vain may be in vain for as long again
Program = Generator["Wait", Any, Any]


class ProgramError(Exception):
    """What a program raises on purpose."""


class Cancelled(Exception):
    """Raised in a program whose task was cancelled."""


class Killed(BaseException):
    """The process ends here."""


@dataclass(eq=False)
class Ref:
    """A counted reference in a program's hands."""

    id: bytes
    owner: bytes
    core: CoreNode
    dropped: bool = False

    @property
    def pair(self) -> tuple[bytes, bytes]:
        return (self.id, self.owner)


@dataclass
class Got:
    ok: bool
    value: Any
    refs: list[Ref] = field(default_factory=list)


@dataclass
class Wait:
    refs: list[Ref] = field(default_factory=list)
    seconds: float = 0.0


class Context:
    """What a program may do. All references it met end with it, but those it keeps."""

    def __init__(self, core: CoreNode, run: Run | None) -> None:
        self.core = core
        self.run = run
        self.refs: list[Ref] = []
        self.random = core.world.random

    def _new(self, object_id: bytes, owner: bytes) -> Ref:
        ref = self.core.new_ref(object_id, owner)
        self.refs.append(ref)
        return ref

    def borrow(self, pair: tuple[bytes, bytes]) -> Ref:
        self.core.driven.borrow(pair[0], pair[1], self.run)
        return self._new(*pair)

    def keep(self, ref: Ref) -> Ref:
        """It outlives this task."""
        self.refs.remove(ref)
        return ref

    def drop(self, ref: Ref) -> None:
        if ref in self.refs:
            self.refs.remove(ref)
            self.core.drop_ref(ref)

    def end(self) -> None:
        self.random.shuffle(self.refs)
        for ref in self.refs:
            self.core.drop_ref(ref)
        self.refs = []

    def put(self, value: Any, refs: list[Ref] | None = None) -> Ref:
        inside = refs or []
        return self._new(self.core.driven.put(self.core.lay_down(json.dumps(value).encode(), self.core.owner), [ref.pair for ref in inside]), self.core.owner)

    def task(
        self,
        program: str,
        args: dict[str, Any],
        *,
        deps: list[Ref] | None = None,
        refs: list[Ref] | None = None,
        returns: int = 1,
        retries: int = 3,
        cpus: float = 1,
    ) -> list[Ref]:
        core, inside = self.core, refs or []
        ids = core.driven.submit(
            core.lease_class(cpus), core.pack(program, args, inside), [ref.id for ref in deps or []], [ref.id for ref in inside], returns, retries, program,
            self.run,
        )  # fmt: skip
        return [self._new(object_id, core.owner) for object_id in ids]

    def actor(self, args: dict[str, Any], *, refs: list[Ref] | None = None, restarts: int = 0, held: int = 0) -> Ref:
        """The handle: a reference whose id begins with the actor's."""
        core, inside = self.core, refs or []
        actor_id = core.driven.new_actor_id()
        handle = self._new(core.driven.actor_handle(actor_id), core.owner)
        task = core.driven.creation_task(actor_id, core.pack("create", args, inside), [ref.id for ref in inside], restartable=restarts != 0)
        record = gcs.Actor(
            actor_id=actor_id, job_id=core.job_id, max_restarts=restarts, owner_worker_id=core.worker_id, owner_node_id=core.node_id, resources={"CPU": held},
        )  # fmt: skip
        request = gcs.CreateActorRequest(actor=record, creation_task=task, placement=gcs.Placement(resources={"CPU": UNIT}, bundle_index=-1))
        core.attach(actor_id)
        core.tell_raylet(core.raylet.tell_gcs, gcs_on.ActorRequested(request))
        return handle

    def call(self, handle: Ref, method: str, args: dict[str, Any], *, deps: list[Ref] | None = None, refs: list[Ref] | None = None, retries: int = 0) -> Ref:
        core, inside = self.core, refs or []
        actor_id = handle.id[:16]
        core.attach(actor_id)
        [result] = core.driven.submit_actor(
            actor_id, core.pack(method, args, inside), [ref.id for ref in deps or []], [ref.id for ref in inside], 1, retries, method, self.run
        )
        return self._new(result, core.owner)

    def cancel(self, ref: Ref, *, recursive: bool) -> None:
        self.core.driven.cancel(ref.id[:16], False, recursive)

    def get(self, *refs: Ref) -> Wait:
        return Wait(list(refs))

    def sleep(self, seconds: float) -> Wait:
        return Wait(seconds=seconds)


@dataclass(eq=False)
class Fiber:
    context: Context
    program: Program
    waiting: list[Ref] | None = None
    since: float = 0.0
    asleep: bool = False
    started: bool = False
    cancelled: bool = False


class CoreNode:
    def __init__(self, world: World, raylet: RayletNode, *, is_driver: bool, job_id: bytes) -> None:
        self.world = world
        self.raylet = raylet
        self.worker_id = world.id16()
        self.node_id = raylet.node_id
        self.owner = self.worker_id + self.node_id
        self.is_driver = is_driver
        self.job_id = job_id
        self.alive = True
        self.host_gone = False
        self.driven = Driven(worker_id=self.worker_id, node_id=self.node_id, kind=0 if is_driver else 1, job=int.from_bytes(job_id, "little"))
        self.connections: dict[int, Connection] = {}
        self.live: dict[Ref, None] = {}
        self.fiber: Fiber | None = None
        self.ended = False  # of a driver: its program has
        self.actor_id = b""
        self.state: dict[str, Any] = {}
        self.begun = 0  # tasks and calls
        self.exiting = False
        self._leaving = False
        self._busy = False
        self._timer = math.inf  # when it rings
        self._unanswered: dict[bytes, tuple[float, float]] = {}  # the dials in vain to each process: when it heard of the first one and of the last one
        world.cores[self.worker_id] = self
        self.driven.set_now(int(world.now * 1e9))
        self._raylet_connection = raylet.connect(self)
        self.connections[self._raylet_connection.dialled] = self._raylet_connection
        self.driven.join(self._raylet_connection.dialled)
        store_connection = raylet.store.connect(self)
        self.connections[store_connection.dialled] = store_connection
        self.driven.join_store(store_connection.dialled)
        if is_driver:
            raylet.add_job(job_id, self.worker_id)
        world.after(0.0, self.step)

    def _look_at_clock(self) -> None:
        self.driven.set_now(int(self.world.now * 1e9))
        self.driven.set_lease_until(self.raylet.lease_until_ns)

    # -- references -------------------------------------------------------------------------------------

    def new_ref(self, object_id: bytes, owner: bytes) -> Ref:
        ref = Ref(object_id, owner, self)
        self.live[ref] = None
        self.world.holders.setdefault(object_id, set()).add(self.worker_id)
        return ref

    def drop_ref(self, ref: Ref) -> None:
        if not ref.dropped and self.alive:
            ref.dropped = True
            del self.live[ref]
            self.driven.drop(ref.id)

    def pack(self, program: str, args: dict[str, Any], refs: list[Ref]) -> bytes:
        return json.dumps([program, args, [[ref.id.hex(), ref.owner.hex()] for ref in refs]]).encode()

    def lease_class(self, cpus: float) -> int:
        return self.driven.lease_class(pb.LeaseClass(resources={"CPU": int(cpus * UNIT)}, job_id=self.job_id, name="f", bundle_index=-1).SerializeToString())

    def lay_down(self, value: bytes, owner: bytes) -> Any:
        """What the engine does with a value that may be large: some lie in the node's store."""
        return self.raylet.store.create(value, owner) if self.world.faults.stored and self.world.random.random() < self.world.faults.stored else value

    def attach(self, actor_id: bytes) -> None:
        if self.driven.attach_actor(actor_id):
            self.tell_raylet(self.raylet.subscribe, self.worker_id, f"actor:{actor_id.hex()}")

    def tell_raylet(self, function: Callable[..., None], *args: Any) -> None:
        self._raylet_connection.tell(self._raylet_connection.dialled, function, *args)

    # -- connections ----------------------------------------------------------------------------------

    def on_data(self, connection: Connection, number: int, data: bytes) -> None:
        self._look_at_clock()
        self.world.check(self.driven.deliver(number, data), "a frame is broken")
        self.step()

    def on_closed(self, connection: Connection, number: int) -> None:
        self._look_at_clock()
        self.connections.pop(number, None)
        self.driven.closed(number)
        self.step()

    def accept(self, connection: Connection) -> None:
        self.connections[connection.accepted] = connection
        self.driven.accept(connection.accepted, connection.ends[0].node_id != self.node_id)
        self.step()

    def _dial(self) -> bool:
        wanted = self.driven.connects()
        for token, worker_id, _node in wanted:
            target = self.world.cores.get(worker_id)
            if target is None or not target.alive:
                if target is None or not target.host_gone:
                    Link(self.world, self.node_id, _node).send(self._refused, token, target is None or target.raylet.alive)
                continue
            if _node != self.node_id and self.world.random.random() < self.world.faults.unanswered_dials:
                told = self.world.now + 3 * self.world.random.random()
                first, last = self._unanswered.get(worker_id, (told, told))
                if self.world.now - last > APART_S:
                    first = told
                if told - first < SILENT_S:
                    self._unanswered[worker_id] = (first, told)
                    self.world.at(told, self._refused, token, False)
                    continue
            self._unanswered.pop(worker_id, None)
            connection = Connection(self.world, self, target)
            self.driven.opened(token, connection.dialled)
            self.connections[connection.dialled] = connection
            connection.tell(connection.dialled, target.accept, connection)
        return bool(wanted)

    def _refused(self, token: int, ended: bool) -> None:
        if self.alive:
            self._look_at_clock()
            self.driven.refused(token, "nobody is there", ended)
            self.step()

    def _close(self) -> bool:
        numbers = self.driven.closes()
        for number in numbers:
            connection = self.connections.pop(number, None)
            if connection is not None:
                connection.close(number)
        return bool(numbers)

    def _free(self) -> bool:
        store = self.raylet.store
        places, holds, ends = self.driven.arena_effects()
        for place in places:
            store.free(place)
        for object_id in holds:
            slot = self.driven.to_hold(object_id)
            if slot is not None:
                self.driven.held(object_id, store.pin(slot, self.worker_id))
        for slot in ends:
            store.unpin(slot, self.worker_id)
        return bool(places or holds or ends)

    def _flush(self) -> bool:
        frames = self.driven.take_frames()
        for number, data in frames:
            connection = self.connections.get(number)
            if connection is not None:
                connection.send(number, data)
        return bool(frames)

    # -- events -----------------------------------------------------------------------------------------

    def _events(self) -> bool:
        events = self.driven.events()
        for kind, number, id16, _text, payload in events:
            name = EVENT_KINDS.get(kind, "")
            if name == "channel":
                self._on_actor(gcs.Actor.FromString(payload))
            elif name == "actor_out_of_scope":
                self.tell_raylet(self.raylet.tell_gcs, gcs_on.ActorWentOutOfScope(id16))
            elif name == "node_address":
                self._on_address_wanted(id16)
            elif name == "exit":
                self._on_exit(bool(number))
            elif name == "cancel" and id16 == self.running_task and self.fiber is not None:
                self.fiber.cancelled = True
            elif name == "raylet_lost" and not self.is_driver:
                self.crash(silent=False)
            if not self.alive:
                return False
        return bool(events)

    def _on_actor(self, actor: gcs.Actor) -> None:
        self.driven.actor_update(
            actor.actor_id, actor.state, actor.worker_id, actor.node_id, actor.incarnation, actor.death_code, actor.death_cause, actor.death_error
        )

    def _on_address_wanted(self, node_id: bytes) -> None:
        if self.raylet.nodes.get(node_id, True):
            self.driven.node_address(node_id, node_id)
        else:
            self.driven.node_died(node_id, "its node is not known to the cluster any more")

    def _on_exit(self, force: bool) -> None:
        if force:
            self.crash(silent=False, code=Code.WORKER_EXITED)
        else:
            self.exiting = True

    def _leave(self) -> None:
        """When nobody needs what it owns."""
        self._leaving = False
        if not self.alive or self.fiber is not None:
            return
        counts = self.driven.counts()
        if counts["rows"] or counts["tasks"] or counts["runs"]:
            self.step()
        else:
            self.crash(silent=False, code=Code.WORKER_EXITED)

    def crash(self, *, silent: bool, code: int = Code.WORKER_CRASHED) -> None:
        if not self.alive:
            return
        world, task = self.world, self.running_task
        at = f"process {self.worker_id.hex()[:6]} on node {self.raylet.number}"
        world.note(f"{at} ends, code {code}, task {task.hex()[:12]}, actor {self.actor_id.hex()[:8]}")
        self.alive = False
        self.host_gone = silent
        world.doubted.add(self.worker_id)
        for number, connection in self.connections.items():
            connection.close(number, silent=silent)
        if not silent and not self.is_driver:  # nobody but its connection tells of a driver's end
            world.after(0.001 + 0.004 * world.random.random(), self.raylet.worker_exited, self, task or bytes(16), code)

    # -- programs ---------------------------------------------------------------------------------------

    @property
    def running_task(self) -> bytes:
        return self.fiber.context.run.task_id if self.fiber is not None and self.fiber.context.run is not None else b""

    def blocked_for(self, seconds: float) -> bool:
        fiber = self.fiber
        return fiber is not None and fiber.waiting is not None and self.world.now - fiber.since >= seconds

    def start(self, program: Callable[[Context], Program]) -> None:
        """The driver's own."""
        context = Context(self, None)
        self.fiber = Fiber(context, program(context))
        self.step()

    def step(self) -> None:
        """Everything that can go on now does."""
        if not self.alive or self._busy:
            return
        self._busy = True
        self._look_at_clock()
        try:
            while self.alive and (self._events() or self._dial() or self._flush() or self._close() or self._free() or self._advance()):
                pass
        finally:
            self._busy = False
        if not self.alive or (left := self.driven.next_timer() / 1e9) < 0:
            return
        due = self.world.now + (left if left > 1 else TIMER_S)
        if due < self._timer:
            self._timer = due
            self.world.at(due, self._on_timer, due)

    def _on_timer(self, due: float) -> None:
        if self.alive and due == self._timer:
            self._timer = math.inf
            self._look_at_clock()
            self.driven.timer()
            self.step()

    def _advance(self) -> bool:
        if not self.alive:
            return False
        fiber = self.fiber
        if fiber is None:
            return not self.is_driver and self._next()
        if fiber.asleep and not fiber.cancelled:
            return False
        sent: Any = None
        if fiber.waiting is not None and not fiber.cancelled:
            answers = [self._look(ref.id) for ref in fiber.waiting]
            if any(answer is None for answer in answers):
                return self._events() or self._dial() or self._flush()  # their owners are asked, the store, and where nodes are
            sent = [self._open(fiber.context, answer) for answer in answers if answer is not None]
            fiber.waiting = None
        self._resume(fiber, sent)
        return True

    def _look(self, object_id: bytes) -> tuple[Any, ...] | None:
        """What is there of it. The store may have dropped a copy meanwhile: then it is brought anew."""
        answer = self.driven.get(object_id)
        while answer is not None and answer[1] == KIND_STORED and not self.raylet.store.has(answer[2]):
            self.driven.not_here(object_id)
            answer = self.driven.get(object_id)
        return answer

    def _open(self, context: Context, answer: tuple[Any, ...]) -> Got:
        ok, kind, value, inside = answer
        if kind == KIND_STORED:
            value = self.raylet.store.values[value]
        refs = [context.borrow(pair) for pair in inside]
        if isinstance(value, str):
            return Got(False, f"code {kind}: {value}", refs)
        return Got(ok, json.loads(value) if value else None, refs)

    def _resume(self, fiber: Fiber, sent: Any) -> None:
        try:
            if fiber.cancelled:
                fiber.program.throw(Cancelled())
            wait = fiber.program.send(sent) if fiber.started else next(fiber.program)
            fiber.started = True
        except StopIteration as stop:
            self._ended(fiber, 0, stop.value)
            return
        except ProgramError as error:
            self._ended(fiber, 1, str(error))
            return
        except Cancelled:
            self._ended(fiber, 2, "cancelled")
            return
        except Killed:
            self.crash(silent=False)
            return
        if wait.refs:
            fiber.waiting, fiber.since = wait.refs, self.world.now
        else:
            fiber.asleep = True
            self.world.after(wait.seconds, self._wake, fiber)

    def _wake(self, fiber: Fiber) -> None:
        fiber.asleep = False
        self.step()

    def _next(self) -> bool:
        run = self.driven.next_run()
        if run is None:
            if self.exiting and not self._leaving:
                self._leaving = True
                self.world.after(LEAVE_S, self._leave)
            return False
        if not self.driven.begin(run):
            return True
        self.begun += 1
        context = Context(self, run)
        self.fiber = Fiber(context, self._program(context, run), since=self.world.now)
        self.fiber.context.started_at = self.world.now  # type: ignore[attr-defined]
        return True

    def _program(self, context: Context, run: Run) -> Program:
        from programs import METHODS, TASKS

        name, args, pairs = json.loads(run.args)
        refs = [context.borrow((bytes.fromhex(one), bytes.fromhex(owner))) for one, owner in pairs]
        for object_id in self.driven.stored_deps(run):
            while self._look(object_id) is None:
                yield Wait([Ref(object_id, b"", self)])
        deps = [self._open(context, answer[1:]) for answer in self.driven.deps(run)]
        for dep in deps:
            if not dep.ok:
                raise ProgramError(f"argument: {dep.value}")
        if run.kind == 1:
            self._become(run.actor_id)
        elif run.kind == 2:
            self.world.check(run.actor_id == self.actor_id, "a call reached another actor")
            self.world.check(self.world.lives[self.actor_id] == self.worker_id, f"a life of actor {self.actor_id.hex()} takes a call after the next one began")
            # In whatever life. One that may be retried is applied at least once: it goes again, as another attempt, when its answer was lost with a connection.
            key = (args["token"], run.attempt)
            self.world.check(key not in self.world.applied, f"attempt {run.attempt} of call {args['token']} was applied twice by {self.actor_id.hex()[:8]}")
            self.world.applied.add(key)
        result = yield from (TASKS if run.kind == 0 else METHODS)[name](context, args, deps, refs)
        return result

    def _become(self, actor_id: bytes) -> None:
        """One of two lives may still be there, cut off; it begins nothing more, and runs nothing."""
        self.actor_id = actor_id
        for core in self.world.cores.values():
            if core is not self and core.alive and core.actor_id == actor_id:
                stands_still = core.raylet.term.is_over(self.world.now) and core.fiber is None
                self.world.check(stands_still, f"actor {actor_id.hex()} has two lives")
        self.world.lives[actor_id] = self.worker_id

    def _ended(self, fiber: Fiber, status: int, result: Any) -> None:
        context = fiber.context
        if context.run is not None:
            took = max(1, int((self.world.now - context.started_at) * 1e6))  # type: ignore[attr-defined]
            if status:
                results: list[tuple[int, bytes, list[tuple[bytes, bytes]]]] = [(KIND_ERROR, json.dumps(result).encode(), [])]
            else:
                results = [
                    (KIND_BYTES, self.lay_down(json.dumps(value).encode(), context.run.caller), [ref.pair for ref in refs])
                    for value, refs in result or [(None, [])]
                ]
            self.driven.reply(context.run, status, results, took)
        else:
            self.ended = True
        self.fiber = None
        context.end()
