# ruff: noqa: F821
# What type checkers infer of actors. `# T:` is for both; `# M:` for mypy, by its plugin shoal.mypy_plugin (`M! code`: an error that takes it): pyright has no
# plugins, and takes methods of handles for Any.
from collections.abc import Iterator

import shoal
from shoal.actor import ActorClass, ActorHandle, ActorProxy


class Counter:
    def __init__(self, start: int = 0) -> None:
        self.n = start

    def add(self, n: int = 1) -> int:
        return self.n + n

    async def wait(self, seconds: float) -> str:
        return ""

    def count(self) -> Iterator[int]:
        yield self.n

    @staticmethod
    def zero() -> int:
        return 0

    @shoal.method(concurrency_group="io")
    def grouped(self, text: str) -> bytes:
        return text.encode()

    @shoal.method(num_returns=2)
    def two(self) -> tuple[int, int]:
        return 1, 2


RemoteCounter = shoal.remote(Counter)
reveal_type(RemoteCounter)  # T: shoal.actor.ActorClass[actors.Counter]
reveal_type(RemoteCounter.options(name="a", num_cpus=1))  # T: shoal.actor.ActorClass[actors.Counter]
counter = RemoteCounter.remote(1)
reveal_type(counter)  # T: shoal.actor.ActorHandle[actors.Counter]
reveal_type(counter.add.remote(2))  # M: shoal._core.engine.ObjectRef[int]
reveal_type(shoal.get(counter.add.remote(counter.add.remote())))  # M: int
reveal_type(counter.add.options(name="more").remote(2))  # M: shoal._core.engine.ObjectRef[int]
reveal_type(counter.wait.remote(0.5))  # M: shoal._core.engine.ObjectRef[str]
reveal_type(counter.count.remote())  # M: shoal.object_ref_generator.ObjectRefGenerator[int]
reveal_type(counter.zero.remote())  # M: shoal._core.engine.ObjectRef[int]
reveal_type(counter.grouped.remote("a"))  # M: shoal._core.engine.ObjectRef[bytes]
reveal_type(counter.two.remote())  # T: Any
counter.add.remote("2")  # M! call-overload
counter.spoon.remote()  # M! attr-defined
reveal_type(shoal.remote(num_cpus=1)(Counter))  # T: shoal.actor.ActorClass[actors.Counter]

# Constructors: the class's own parameters, and references for them.
reveal_type(RemoteCounter.remote())  # T: shoal.actor.ActorHandle[actors.Counter]
reveal_type(RemoteCounter.remote(start=1))  # T: shoal.actor.ActorHandle[actors.Counter]
reveal_type(RemoteCounter.options(num_cpus=1).remote(shoal.put(1)))  # T: shoal.actor.ActorHandle[actors.Counter]
RemoteCounter.remote("one")  # E: call-overload
RemoteCounter.remote(1, 2)  # E: call-overload
RemoteCounter.options(num_cpus=1).remote(stat=1)  # E: call-overload
annotated: ActorClass[Counter] = shoal.remote(Counter)
reveal_type(annotated.remote(1))  # T: shoal.actor.ActorHandle[actors.Counter]


def ask(known: ActorHandle[Counter], proxy: ActorProxy[Counter]) -> None:
    reveal_type(known.add.remote(2))  # M: shoal._core.engine.ObjectRef[int]


ask(counter, counter)
ask(counter.add.remote(), counter)  # M! arg-type
