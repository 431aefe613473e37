# ruff: noqa: F821
# What type checkers infer of tasks. `# T: type` is what the line above reveals, `# E: code` an error that it must have.
from collections.abc import AsyncIterator, Generator, Iterator

import shoal
from shoal import ObjectRef


@shoal.remote
def square(x: int) -> int:
    return x * x


@shoal.remote(num_cpus=2)
def repeat(text: str, *, n: int = 1) -> list[str]:
    return [text] * n


@shoal.remote
def numbers(n: int) -> Iterator[int]:
    yield from range(n)


@shoal.remote(num_returns=2)
def two() -> tuple[int, str]:
    return 1, ""


reveal_type(square)  # T: shoal.remote_function.RemoteFunction[[x: int], int]
reveal_type(square.remote(3))  # T: shoal._core.engine.ObjectRef[int]
reveal_type(shoal.get(square.remote(3)))  # T: int
reveal_type(shoal.get([square.remote(i) for i in range(3)]))  # T: list[int]
reveal_type(repeat.remote("a", n=2))  # T: shoal._core.engine.ObjectRef[list[str]]
reveal_type(repeat.options(num_cpus=1).remote("a"))  # T: shoal._core.engine.ObjectRef[list[str]]
reveal_type(numbers.remote(2))  # T: shoal.object_ref_generator.ObjectRefGenerator[int]
reveal_type([shoal.get(ref) for ref in numbers.remote(2)])  # T: list[int]
first, second = two.remote()

# A reference stands for a value.
reveal_type(square.remote(square.remote(3)))  # T: shoal._core.engine.ObjectRef[int]
reveal_type(shoal.put("a"))  # T: shoal._core.engine.ObjectRef[str]
reveal_type(shoal.wait([square.remote(1)]))  # T: tuple[list[shoal._core.engine.ObjectRef[int]], list[shoal._core.engine.ObjectRef[int]]]

square.remote("three")  # E: call-overload
square.remote()  # E: call-overload
square.remote(3, 4)  # E: call-overload
repeat.remote("a", m=2)  # E: call-overload
wrong: ObjectRef[str] = square.remote(3)  # E: assignment
shoal.get((square.remote(3),))  # E: call-overload


@shoal.remote
async def slowly(n: int) -> AsyncIterator[str]:
    yield ""


async def waits() -> None:
    reveal_type(await square.remote(3))  # T: int
    async for item in slowly.remote(1):
        reveal_type(await item)  # T: str


@shoal.remote
def drawn(n: int) -> Generator[int, None, str]:
    yield n
    return ""


reveal_type(drawn.remote(2))  # T: shoal.object_ref_generator.ObjectRefGenerator[int]
reveal_type(slowly.remote(1))  # T: shoal.object_ref_generator.ObjectRefGenerator[str]
reveal_type(numbers.remote(square.remote(1)))  # T: shoal.object_ref_generator.ObjectRefGenerator[int]
reveal_type(numbers.options(num_cpus=1).remote(2))  # T: shoal.object_ref_generator.ObjectRefGenerator[int]
reveal_type(square.remote(1).future())  # T: concurrent.futures._base.Future[int]
numbers.remote("two")  # E: call-overload
slowly.remote(1, 2)  # E: call-overload
