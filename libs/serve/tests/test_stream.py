"""Streams between a producer and the consumer that pulls, on an event loop alone."""

import asyncio

import pytest
from shoal.serve.stream import MAX_PARTS, Stream


def test_parts_come_in_order_and_all_that_there_are_at_a_time():
    async def drive():
        stream = Stream()
        for i in range(3):
            await stream.put(i)
        assert await stream.pull() == ([0, 1, 2], False)
        waiting = asyncio.ensure_future(stream.pull())
        await asyncio.sleep(0)
        assert not waiting.done()
        await stream.put(3)
        stream.end()
        assert await waiting == ([3], True)
        assert await stream.pull() == ([], True)

    asyncio.run(drive())


def test_a_producer_waits_while_nobody_pulls():
    async def drive():
        stream = Stream()
        made = []

        async def produce():
            for i in range(3 * MAX_PARTS):
                await stream.put(i)
                made.append(i)
            stream.end()

        task = asyncio.ensure_future(produce())
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(made) == MAX_PARTS
        got, done = [], False
        while not done:
            parts, done = await stream.pull()
            got += parts
        await task
        assert got == list(range(3 * MAX_PARTS))

    asyncio.run(drive())


def test_an_error_comes_after_the_parts_before_it():
    async def drive():
        stream = Stream()
        await stream.put("part")
        stream.end(KeyError("then"))
        assert await stream.pull() == (["part"], False)
        with pytest.raises(KeyError, match="then"):
            await stream.pull()

    asyncio.run(drive())


def test_closing_cancels_the_producer():
    async def drive():
        stream = Stream()

        async def produce():
            while True:
                await stream.put(b"x" * 1000)

        stream.producer = asyncio.ensure_future(produce())
        await stream.pull()
        stream.close()
        with pytest.raises(asyncio.CancelledError):
            await stream.producer

    asyncio.run(drive())
