"""No room in shared memory: a clear error, in bounded time, that says what fills it."""

import re
import time

import pytest
import shoal
from shoal.exceptions import ObjectStoreFullError, RayTaskError

MIB = 1 << 20
ROOM = 80 * MIB
TOO_LARGE = 200 * MIB
WAIT_S = 1.0

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module", autouse=True)
def small_store():
    settings = {"objectstore": {"full_wait_s": WAIT_S, "spill": False}}
    shoal.init("local", num_cpus=2, object_store_memory=ROOM, log_to_driver=False, include_dashboard=False, _system_config=settings)
    yield
    shoal.shutdown()


def make():
    return bytes(TOO_LARGE)


class Maker:
    def __init__(self, *_):
        pass

    def make(self, *_):
        return bytes(TOO_LARGE)

    def alive(self):
        return True


class AsyncMaker(Maker):
    async def make(self):
        return bytes(TOO_LARGE)


def test_a_full_store_says_what_fills_it_and_has_room_again_when_it_is_dropped():
    kept = []
    with pytest.raises(ObjectStoreFullError) as caught:
        while True:
            began = time.monotonic()
            kept.append(shoal.put(bytes(10 * MIB)))
    assert WAIT_S <= time.monotonic() - began < WAIT_S + 5
    text = str(caught.value)
    assert re.search(rf"of {ROOM:,} bytes .* are in {len(kept)} objects that references keep", text), text
    assert "Drop references" in text
    assert "object_store_memory" in text
    del kept[:2]
    kept.append(shoal.put(bytes(10 * MIB)))
    assert len(shoal.get(kept[-1])) == 10 * MIB


def test_what_can_never_fit_is_refused_at_once_where_it_was_called():
    @shoal.remote
    def length(x):
        return len(x)

    maker = shoal.remote(num_cpus=0)(Maker).remote()
    blob = bytes(TOO_LARGE)
    for call in (shoal.put, length.remote, maker.make.remote, shoal.remote(Maker).remote):
        began = time.monotonic()
        with pytest.raises(ObjectStoreFullError, match=rf"{TOO_LARGE // 10**6}.*{ROOM:,} bytes in all; start the node with a larger object_store_memory"):
            call(blob)
        assert time.monotonic() - began < 5
    assert shoal.get(maker.alive.remote(), timeout=30)


@pytest.mark.parametrize("kind", ["task", "stream", "plain", "threaded", "async"])
def test_a_result_that_cannot_fit_is_the_tasks_error_and_the_worker_lives(kind):
    actor = None
    if kind == "task":
        ref = shoal.remote(max_retries=0)(make).remote()
    elif kind == "stream":

        @shoal.remote(max_retries=0)
        def stream():
            yield make()

        ref = next(stream.remote())
    else:
        actor = shoal.remote(AsyncMaker if kind == "async" else Maker).options(num_cpus=0, max_concurrency=2 if kind == "threaded" else None).remote()
        ref = actor.make.remote()
    with pytest.raises(ObjectStoreFullError, match=r"a result of .*(make|stream): no room") as caught:
        shoal.get(ref, timeout=30)
    assert isinstance(caught.value, RayTaskError)
    assert f"{ROOM:,} bytes in all" in str(caught.value)
    if actor is not None:
        assert shoal.get(actor.alive.remote(), timeout=30)
