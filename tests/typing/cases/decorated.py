# ruff: noqa: F821
# Classes under the decorator. mypy applies no decorators of classes: by its plugin they have what they get of it.
import shoal
from shoal.actor import TypedActor


@shoal.remote
class Counter:
    def __init__(self, start: int, *, step: int = 1) -> None:
        self.n = start

    def add(self, n: int = 1) -> int:
        return self.n + n


@shoal.remote(num_cpus=1)
class Empty:
    def ask(self) -> str:
        return ""


@shoal.remote(max_restarts=1)
class Typed(TypedActor):
    def __init__(self, start: int) -> None:
        self.n = start

    @shoal.method
    def add(self, n: int) -> int:
        return self.n + n


counter = Counter.remote(1, step=2)
reveal_type(counter)  # T: shoal.actor.ActorHandle[decorated.Counter]
reveal_type(counter.add.remote(1))  # M: shoal._core.engine.ObjectRef[int]
reveal_type(Counter.remote(shoal.put(1)))  # T: shoal.actor.ActorHandle[decorated.Counter]
reveal_type(Counter.options(name="a"))  # T: shoal.actor.ActorClass[decorated.Counter]
reveal_type(Counter.options(name="a").remote(1))  # T: shoal.actor.ActorHandle[decorated.Counter]
reveal_type(Empty.remote())  # T: shoal.actor.ActorHandle[decorated.Empty]
reveal_type(shoal.get(Empty.remote().ask.remote()))  # M: str
reveal_type(Typed.remote(1))  # T: decorated.Typed
reveal_type(Typed.remote(1).add.remote(2))  # T: shoal._core.engine.ObjectRef[int]
Counter.remote("one")  # E: call-overload
Counter.remote()  # E: call-overload
Counter.remote(1, spoon=2)  # E: call-overload
Counter.options(name="a").remote("one")  # E: call-overload
Typed.remote("one")  # E: call-overload
Typed.remote(1).add.remote("2")  # E: call-overload
