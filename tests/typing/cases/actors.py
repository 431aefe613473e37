# ruff: noqa: F821
# What type checkers infer of actors. mypy does not apply decorators of classes (pyright does): `shoal.remote(Class)` works with both.
import shoal


class Counter:
    def __init__(self, start: int = 0) -> None:
        self.n = start

    def add(self, n: int = 1) -> int:
        return self.n + n


RemoteCounter = shoal.remote(Counter)
reveal_type(RemoteCounter)  # T: shoal.actor.ActorClass[actors.Counter]
reveal_type(RemoteCounter.options(name="a", num_cpus=1))  # T: shoal.actor.ActorClass[actors.Counter]
counter = RemoteCounter.remote(1)
reveal_type(counter)  # T: shoal.actor.ActorHandle[actors.Counter]
reveal_type(counter.add.remote(2))  # T: Any
reveal_type(shoal.remote(num_cpus=1)(Counter))  # T: shoal.actor.ActorClass[actors.Counter]
