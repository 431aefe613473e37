"""How a subscriber's stream ends, as the control store sees it."""

import asyncio

import grpc
import grpc.aio
import pytest
from shoal_gcs.pubsub import MAX_MESSAGE_BYTES, Hub, Subscriber
from shoal_gcs.subscription import serve_subscriber
from shoal_gcs.v1 import gcs_pb2 as pb

NODE = bytes(16)


class Stream:
    """What gRPC shows of a peer that says one thing, and then is gone in this way."""

    def __init__(self, said, end):
        self._said, self._end = [said], end

    async def read(self):
        if self._said:
            return self._said.pop()
        if self._end == "half-closed":
            return grpc.aio.EOF
        return await asyncio.Event().wait()

    async def write(self, event):
        if self._end == "broken":
            raise grpc.aio.UsageError("RPC already finished.")


def ends_with(said, end, *, cancel=False):
    async def serve():
        hub = Hub(lambda channel: [b"first"])
        serving = asyncio.ensure_future(serve_subscriber(hub, Stream(said, end), asyncio.Event().wait if cancel else stored))
        if cancel:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            serving.cancel()
        try:
            return await asyncio.wait_for(serving, 10)
        finally:
            assert not hub.subscribers

    async def stored():
        return None

    return asyncio.run(serve())


@pytest.mark.parametrize(("end", "cancel"), [("half-closed", False), ("broken", False), ("silent", True)])
def test_a_node_whose_stream_is_over_is_named_however_it_ended_so_that_somebody_knocks(end, cancel):
    """A killed raylet's stream ends by its side's end or by cancellation, whichever gRPC sees first."""
    assert ends_with(pb.SubscribeRequest(node_id=NODE, add=["nodes"]), end, cancel=cancel) == NODE


def test_of_a_subscriber_that_is_no_node_nobody_is_named():
    assert ends_with(pb.SubscribeRequest(add=["nodes"]), "half-closed") == b""


def told(subscriber, payloads):
    """The messages of a subscriber that was slow while these were published, each as the payloads in it."""
    hub = Hub(lambda channel: [])
    hub.join(subscriber)
    hub.add(subscriber, ["c"])
    for payload in payloads:
        hub.publish("c", payload)
    messages = []
    while (message := subscriber.pop()) is not None:
        event = pb.Event.FromString(message)
        messages.append([event.payload, *(other.payload for other in event.more)])
    assert subscriber.queued_bytes == 0
    return messages


def test_events_that_wait_together_are_one_message_for_whoever_takes_several():
    subscriber = Subscriber(lambda: None)
    subscriber.several = True
    assert told(subscriber, [b"%d" % n for n in range(100)]) == [[b"%d" % n for n in range(100)]]


def test_whoever_did_not_say_so_gets_one_event_a_message():
    assert told(Subscriber(lambda: None), [b"1", b"2"]) == [[b"1"], [b"2"]]


def test_a_message_of_several_events_is_bounded_and_a_larger_event_goes_alone():
    subscriber = Subscriber(lambda: None)
    subscriber.several = True
    half, large = bytes(MAX_MESSAGE_BYTES // 2 - 100), bytes(2 * MAX_MESSAGE_BYTES)
    assert [list(map(len, message)) for message in told(subscriber, [half, half, half, large, b"1"])] == [[len(half)] * 2, [len(half)], [len(large)], [1]]
