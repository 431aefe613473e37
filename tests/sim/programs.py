"""What the simulated processes run. Every value can be checked by whoever gets it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core_node import Context, Got, Killed, Program, ProgramError, Ref

Body = Callable[[Context, dict[str, Any], list[Got], list[Ref]], Program]


def square(ctx: Context, args: dict[str, Any], deps: list[Got], refs: list[Ref]) -> Program:
    yield ctx.sleep(args.get("s", 0.0))
    return [(args["x"] ** 2, [])]


def total(ctx: Context, args: dict[str, Any], deps: list[Got], refs: list[Ref]) -> Program:
    """The sum of its arguments' values and of what the references inside them lead to."""
    yield ctx.sleep(args.get("s", 0.0))
    got = (yield ctx.get(*refs)) if refs else []
    inner = [one for dep in deps for one in dep.refs]
    more = (yield ctx.get(*inner)) if inner else []
    for one in [*got, *more]:
        if not one.ok:
            raise ProgramError(f"inner: {one.value}")
    return [(sum(one.value for one in [*deps, *got, *more]), [])]


def nested(ctx: Context, args: dict[str, Any], deps: list[Got], refs: list[Ref]) -> Program:
    """Tasks of its own, waited for."""
    parts = [ctx.task("square", {"x": x, "s": args.get("s", 0.0)})[0] for x in range(args["n"])]
    if args["n"] and ctx.random.random() < 0.5:
        parts.append(ctx.task("nested", {"n": args["n"] - 1})[0])
        extra = sum(sum(x * x for x in range(n)) for n in range(args["n"]))
    else:
        extra = 0
    answers = yield ctx.get(*parts) if parts else ctx.sleep(0)
    for one in answers or []:
        if not one.ok:
            raise ProgramError(f"part: {one.value}")
    value = sum(one.value for one in answers or [])
    return [(value - extra, [])]


def pointer(ctx: Context, args: dict[str, Any], deps: list[Got], refs: list[Ref]) -> Program:
    """A value with a reference inside: to an object of its own, to a task's result not waited for, or one that it was given."""
    yield ctx.sleep(args.get("s", 0.0))
    kind = args["kind"]
    if kind == "put":
        inner = ctx.put(args["x"])
    elif kind == "task":
        inner = ctx.task("square", {"x": args["x"], "s": 0.01})[0]
    else:
        inner = refs[0]
    return [(0, [inner])]


def hold(ctx: Context, args: dict[str, Any], deps: list[Got], refs: list[Ref]) -> Program:
    """Keeps what it was given beyond its end, for a while."""
    kept = [ctx.keep(ref) for ref in list(ctx.refs)]
    ctx.core.world.after(args["s"], _let_go, ctx, kept)
    yield ctx.sleep(0)
    return [(len(kept), [])]


def _let_go(ctx: Context, kept: list[Ref]) -> None:
    for ref in kept:
        ctx.core.drop_ref(ref)
    ctx.core.step()


def tell_actor(ctx: Context, args: dict[str, Any], deps: list[Got], refs: list[Ref]) -> Program:
    """Calls the actor whose handle it was given."""
    [answer] = yield ctx.get(ctx.call(refs[0], "add", {"token": args["token"], "x": 1}))
    return [(int(answer.ok), [])]


def fails(ctx: Context, args: dict[str, Any], deps: list[Got], refs: list[Ref]) -> Program:
    yield ctx.sleep(0)
    raise ProgramError("as it should")


# -- actors ---------------------------------------------------------------------------------------------


def create(ctx: Context, args: dict[str, Any], deps: list[Got], refs: list[Ref]) -> Program:
    yield ctx.sleep(args.get("s", 0.0))
    ctx.core.state = {"n": 0, "kept": [ctx.keep(ref) for ref in refs]}
    return [(None, [])]


def add(ctx: Context, args: dict[str, Any], deps: list[Got], refs: list[Ref]) -> Program:
    yield ctx.sleep(args.get("s", 0.0))
    ctx.core.state["n"] += args["x"]
    return [(ctx.core.state["n"], [])]


def keep(ctx: Context, args: dict[str, Any], deps: list[Got], refs: list[Ref]) -> Program:
    yield ctx.sleep(0)
    ctx.core.state["kept"] += [ctx.keep(ref) for ref in refs]
    return [(len(ctx.core.state["kept"]), [])]


def give(ctx: Context, args: dict[str, Any], deps: list[Got], refs: list[Ref]) -> Program:
    """What it keeps, to whoever asks."""
    yield ctx.sleep(0)
    return [(0, list(ctx.core.state["kept"]))]


def forget(ctx: Context, args: dict[str, Any], deps: list[Got], refs: list[Ref]) -> Program:
    yield ctx.sleep(0)
    kept, ctx.core.state["kept"] = ctx.core.state["kept"], []
    _let_go(ctx, kept)
    return [(None, [])]


def die(ctx: Context, args: dict[str, Any], deps: list[Got], refs: list[Ref]) -> Program:
    yield ctx.sleep(0)
    raise Killed


TASKS: dict[str, Body] = {f.__name__: f for f in (square, total, nested, pointer, hold, tell_actor, fails)}
METHODS: dict[str, Body] = {f.__name__: f for f in (create, add, keep, give, forget, die)}


# -- drivers ----------------------------------------------------------------------------------------------


class Driver:
    """A random program: what it submits, passes on, gets and drops. `lenient`: an error is an answer, since processes die."""

    retries = 3

    def __init__(self, ctx: Context, moves: int, lenient: bool) -> None:
        self.ctx = ctx
        self.random = ctx.random
        self.moves = moves
        self.lenient = lenient
        self.known: list[tuple[Ref, int]] = []  # with their values
        self.handles: list[Ref] = []
        self.tokens = 0
        self.held = 10_000

    def program(self) -> Program:
        for _ in range(self.moves):
            yield from self.random.choice(self.choices())()
        for ref, value in self.known:
            yield from self.expect(ref, value)

    def choices(self) -> list[Callable[[], Program]]:
        return [
            self.fan_out, self.chain, self.nest, self.point, self.hold, self.fail, self.cancel, self.make_actor, self.use_actor, self.pass_handle, self.drop,
            self.pause,
        ]  # fmt: skip

    def expect(self, ref: Ref, value: int | None) -> Program:
        [got] = yield self.ctx.get(ref)
        world = self.ctx.core.world
        if got.ok:
            world.check(value is None or got.value == value, f"{got.value} came instead of {value}")
        else:
            world.check(self.lenient, f"an error came where nothing had gone wrong: {got.value}")
        return got

    def token(self) -> str:
        self.tokens += 1
        return f"{self.ctx.core.worker_id.hex()[:6]}-{self.tokens}"

    def fan_out(self) -> Program:
        pairs = []
        s = self.random.choice([0, 0, 0.001, 0.03])
        for _ in range(self.random.randint(1, 12)):
            x = self.random.randint(0, 99)
            pairs.append((self.ctx.task("square", {"x": x, "s": s}, cpus=self.random.choice([1, 1, 0.5]), retries=self.retries)[0], x * x))
        self.known += pairs
        if self.random.random() < 0.5:
            for ref, value in pairs:
                yield from self.expect(ref, value)

    def chain(self) -> Program:
        chosen = self.random.sample(self.known, min(len(self.known), 3))
        start = self.random.randint(0, 9)
        deps = [(self.ctx.put(start), start), *chosen]
        split = self.random.randint(0, len(deps))
        value = sum(value for _, value in deps)
        ref = self.ctx.task("total", {}, deps=[ref for ref, _ in deps[:split]], refs=[ref for ref, _ in deps[split:]], retries=self.retries)[0]
        self.known.append((ref, value))
        yield self.ctx.sleep(0)

    def nest(self) -> Program:
        n = self.random.randint(0, 4)
        ref = self.ctx.task("nested", {"n": n, "s": 0.002})[0]
        yield from self.expect(ref, None)
        self.ctx.drop(ref)

    def point(self) -> Program:
        ctx, kind, x = self.ctx, self.random.choice(["put", "task", "given"]), self.random.randint(0, 9)
        given = [ctx.put(x)] if kind == "given" else []
        outer = ctx.task("pointer", {"kind": kind, "x": x}, refs=given)[0]
        for ref in given:
            if self.random.random() < 0.7:
                ctx.drop(ref)
        value = x * x if kind == "task" else x
        if self.random.random() < 0.5:
            self.known.append((ctx.task("total", {"s": 0.005}, deps=[outer])[0], value))
        if self.random.random() < 0.5:
            got = yield from self.expect(outer, 0)
            ctx.drop(outer)
            if got.ok:
                yield from self.expect(got.refs[0], value)

    def hold(self) -> Program:
        refs = [self.ctx.put(7)] + [ref for ref, _ in self.random.sample(self.known, min(len(self.known), 2))]
        done = self.ctx.task("hold", {"s": self.random.random() * 2}, refs=refs)[0]
        self.ctx.drop(refs[0])
        if self.random.random() < 0.5:
            yield from self.expect(done, None)
        self.ctx.drop(done)

    def fail(self) -> Program:
        ref = self.ctx.task("fails", {}, retries=0)[0]
        after = self.ctx.task("total", {}, deps=[ref])[0]
        [got] = yield self.ctx.get(after)
        self.ctx.core.world.check(not got.ok, "a task with a failed argument ended well")
        self.ctx.drop(ref)
        self.ctx.drop(after)

    def cancel(self) -> Program:
        """One of several: it ends soon, whatever becomes of it, and the others are none the wiser."""
        s = self.random.choice([0.001, 0.02])
        others = [(self.ctx.task("square", {"x": x, "s": s})[0], x * x) for x in range(self.random.randint(1, 6))]
        if self.random.random() < 0.5:
            ref = self.ctx.task("nested", {"n": 3, "s": 30.0})[0]
        else:
            ref = self.ctx.task("square", {"x": 3, "s": 30.0})[0]
        yield self.ctx.sleep(self.random.choice([0.0, 0.001, 0.05, 0.3]))
        self.ctx.cancel(ref, recursive=True)
        [got] = yield self.ctx.get(ref)
        self.ctx.core.world.check(not got.ok, "a task of 30 s that was cancelled at its beginning ended well")
        self.ctx.drop(ref)
        for one, value in others:
            yield from self.expect(one, value)
            self.ctx.drop(one)

    def make_actor(self) -> Program:
        if len(self.handles) < 4:
            given = [self.ctx.put(5)]
            self.handles.append(self.ctx.actor({"s": self.random.choice([0, 0.05])}, refs=given, restarts=self.random.choice([0, 1, -1]), held=self.held))
            self.held = 0  # actors that hold all CPUs would rightly let tasks wait for ever
            self.ctx.drop(given[0])
        yield self.ctx.sleep(0)

    def use_actor(self) -> Program:
        if not self.handles:
            return
        ctx, handle = self.ctx, self.random.choice(self.handles)
        retries = self.random.choice([0, 0, -1])
        for _ in range(self.random.randint(1, 4)):
            method = self.random.choice(["add", "add", "keep", "give", "forget"])
            refs = [ctx.put(3)] if method == "keep" else []
            result = ctx.call(handle, method, {"token": self.token(), "x": 1}, refs=refs, retries=retries)
            for ref in refs:
                ctx.drop(ref)
            if self.random.random() < 0.4:
                got = yield from self.expect(result, None)
                for inner in got.refs[:2]:
                    yield from self.expect(inner, None)
            ctx.drop(result)
        if self.lenient and self.random.random() < 0.1:
            ctx.drop(ctx.call(handle, "die", {"token": self.token()}))

    def pass_handle(self) -> Program:
        if self.handles:
            handle = self.random.choice(self.handles)
            done = self.ctx.task("tell_actor", {"token": self.token()}, refs=[handle], retries=0)[0]
            if self.random.random() < 0.3:
                self.handles.remove(handle)
                self.ctx.drop(handle)
            yield from self.expect(done, None)
            self.ctx.drop(done)

    def drop(self) -> Program:
        for _ in range(min(len(self.known), 5)):
            ref, _value = self.known.pop(self.random.randrange(len(self.known)))
            self.ctx.drop(ref)
        if self.handles and self.random.random() < 0.3:
            self.ctx.drop(self.handles.pop(self.random.randrange(len(self.handles))))
        yield self.ctx.sleep(0)

    def pause(self) -> Program:
        yield self.ctx.sleep(self.random.choice([0.005, 0.08, 0.3]))


class Recoverable(Driver):
    """Tasks upon tasks whose every object belongs to this driver, whose node stays: whatever else dies, each value comes and is right."""

    retries = -1

    def choices(self) -> list[Callable[[], Program]]:
        return [self.fan_out, self.chain, self.chain, self.chain, self.read, self.drop, self.pause]

    def read(self) -> Program:
        for ref, value in self.random.sample(self.known, min(len(self.known), 4)):
            yield from self.expect(ref, value)


class Heir(Driver):
    """What a process that is killed had owned, and this one or somebody whom it told of it holds on to, is there as before."""

    retries = -1

    def choices(self) -> list[Callable[[], Program]]:
        return [self.outlive, self.outlive, self.outlive, self.entrust, self.fan_out, self.drop, self.pause]

    def inherit(self) -> Program:
        """A reference to an object of a process that is dead by now, and its value."""
        ctx, kind, x = self.ctx, self.random.choice(["put", "task"]), self.random.randint(0, 9)
        outer = ctx.task("pointer", {"kind": kind, "x": x}, retries=self.retries)[0]
        got = yield from self.expect(outer, 0)
        ctx.drop(outer)
        yield ctx.sleep(1.0)  # nobody reads it; the owner is asked all the same
        inner: Ref = got.refs[0]
        owner = ctx.core.world.cores[inner.owner[:16]]
        owner.crash(silent=False)
        yield ctx.sleep(self.random.choice([0.0, 0.01, 1.0, 8.0]))
        return inner, x * x if kind == "task" else x

    def outlive(self) -> Program:
        inner, value = yield from self.inherit()
        if self.random.random() < 0.5:
            yield from self.expect(inner, value)
        if self.random.random() < 0.5:
            inner = self.ctx.task("total", {"s": self.random.choice([0.0, 2.0])}, refs=[inner], retries=self.retries)[0]
        self.known.append((inner, value))

    def entrust(self) -> Program:
        """To an actor, which gives it back when this process has it no more."""
        ctx = self.ctx
        inner, value = yield from self.inherit()
        keeper = ctx.actor({})
        yield from self.expect(ctx.call(keeper, "keep", {"token": self.token()}, refs=[inner]), 1)
        yield ctx.sleep(3.0)
        ctx.drop(inner)
        yield ctx.sleep(self.random.choice([0.0, 8.0]))
        got = yield from self.expect(ctx.call(keeper, "give", {"token": self.token()}), 0)
        yield from self.expect(got.refs[0], value)
        ctx.drop(keeper)
