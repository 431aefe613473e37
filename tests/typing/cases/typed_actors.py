# ruff: noqa: F821
# Actors whose handles are known without a plugin: TypedActor, and @method on what others call.
from collections.abc import AsyncIterator, Iterator

import shoal
from shoal.actor import ActorProxy, TypedActor


class Counter(TypedActor):
    def __init__(self, start: int) -> None:
        self.n = start

    @shoal.method
    def add(self, n: int = 1, *, times: int = 1) -> int:
        self.n += n * times
        return self.n

    @shoal.method
    async def wait(self, seconds: float) -> str:
        return ""

    @shoal.method
    def count(self, to: int) -> Iterator[int]:
        yield self.n

    @shoal.method
    async def slowly(self, to: int) -> AsyncIterator[int]:
        yield self.n

    @shoal.method(concurrency_group="io", max_task_retries=1)
    def grouped(self, text: str) -> bytes:
        return text.encode() + bytes(self.add(2))

    def inner(self) -> int:
        reveal_type(self.add(1))  # T: int
        return self.add("1")  # E: arg-type


RemoteCounter = shoal.remote(Counter)
counter = RemoteCounter.remote(1)
reveal_type(counter)  # T: typed_actors.Counter
reveal_type(counter.add.remote(2))  # T: shoal._core.engine.ObjectRef[int]
reveal_type(counter.add.remote(2, times=2))  # T: shoal._core.engine.ObjectRef[int]
reveal_type(counter.add.remote(counter.add.remote()))  # T: shoal._core.engine.ObjectRef[int]
reveal_type(shoal.get([counter.add.remote(i) for i in range(2)]))  # T: list[int]
reveal_type(counter.wait.remote(0.5))  # T: shoal._core.engine.ObjectRef[str]
reveal_type(counter.count.remote(3))  # T: shoal.object_ref_generator.ObjectRefGenerator[int]
reveal_type(counter.slowly.remote(3))  # T: shoal.object_ref_generator.ObjectRefGenerator[int]
reveal_type(counter.grouped.remote("a"))  # T: shoal._core.engine.ObjectRef[bytes]
reveal_type(counter.add.options(name="more").remote(2))  # T: shoal._core.engine.ObjectRef[int]
reveal_type(RemoteCounter.options(name="a").remote(shoal.put(1)))  # T: typed_actors.Counter
counter.add.remote("2")  # E: call-overload
counter.add.remote(2, time=2)  # E: call-overload
counter.wait.remote()  # E: call-overload
counter.count.remote("3")  # E: call-overload
counter.spoon.remote()  # E: attr-defined
counter.inner.remote()  # E: attr-defined
RemoteCounter.remote("one")  # E: call-overload
RemoteCounter.remote()  # E: call-overload


def ask(known: Counter, proxy: ActorProxy[Counter]) -> None:
    reveal_type(known.add.remote(2))  # T: shoal._core.engine.ObjectRef[int]
    proxy.add.remote("2")  # E: call-overload


ask(counter, counter)
