"""Nodes: registration, leases, the resource view."""

from __future__ import annotations

import pytest
from gcs_states import CPU, Rig, every, node, node_id, only
from shoal_gcs.state import Refused
from shoal_gcs.state import effects as do
from shoal_gcs.state import events as on
from shoal_gcs.v1 import gcs_pb2 as pb


def test_a_registered_node_is_published_and_stored() -> None:
    rig = Rig()
    effects = rig(on.NodeRegistered(node(1)))
    published = only(effects, do.Publish)
    assert published.channels == ("nodes",)
    assert pb.Node.FromString(published.payload).alive
    assert rig.stored["nodes"].keys() == {node_id(1)}


def test_a_node_that_beats_lives_and_one_silent_for_its_lease_is_dead() -> None:
    rig = Rig(nodes=2)
    rig.wait(9_000, 1)
    assert rig.cluster.nodes.is_alive(node_id(2))
    rig.wait(2_000, 1)
    assert rig.cluster.nodes.is_alive(node_id(1))
    assert not rig.cluster.nodes.is_alive(node_id(2))
    assert "no heartbeat for" in rig.cluster.nodes.dead[node_id(2)].death_cause
    assert {key: pb.Node.FromString(record).alive for key, record in rig.stored["nodes"].items()} == {node_id(1): True, node_id(2): False}


def test_a_store_that_was_stopped_before_its_first_look_takes_nobody_for_silent() -> None:
    """The heartbeats of that time are still unread."""
    rig = Rig().restarted()
    rig(on.NodeRegistered(node(1)))
    rig.now_ms += 60_000
    rig(on.TimePassed())
    assert rig.cluster.nodes.is_alive(node_id(1))
    rig.wait(9_000)
    assert rig.cluster.nodes.is_alive(node_id(1))
    rig.wait(2_000)
    assert not rig.cluster.nodes.is_alive(node_id(1))


def test_a_silent_node_is_probed_and_dies_at_once_when_its_host_refuses() -> None:
    rig = Rig(nodes=1)
    assert only(rig.wait(3_000)[-1:], do.ProbeNode).address == "10.0.0.1:70"
    effects = rig(on.NodeRefused(node_id(1)))
    assert only(effects, do.ForgetNode).node_id == node_id(1)
    assert "refuses" in rig.cluster.nodes.dead[node_id(1)].death_cause


def test_a_store_that_was_stopped_for_a_minute_blames_no_node_for_it() -> None:
    rig = Rig(nodes=2)
    rig.wait(2_000, 1, 2)
    rig.now_ms += 60_000
    rig(on.TimePassed())
    assert rig.cluster.nodes.is_alive(node_id(1))
    rig.wait(11_000, 1)
    assert rig.cluster.nodes.is_alive(node_id(1))
    assert not rig.cluster.nodes.is_alive(node_id(2))


def test_a_broken_connection_asks_for_a_probe_and_kills_nobody() -> None:
    rig = Rig(nodes=1)
    assert only(rig(on.NodeConnectionLost(node_id(1))), do.ProbeNode).node_id == node_id(1)
    assert rig.cluster.nodes.is_alive(node_id(1))


def test_a_node_whose_connection_broke_is_probed_again_and_again_until_it_is_heard() -> None:
    """A process that is being killed may still listen when it is probed first."""
    rig = Rig(nodes=1)
    rig(on.NodeConnectionLost(node_id(1)))
    assert only(rig.wait(500), do.ProbeNode).node_id == node_id(1)
    rig.beat(1)
    assert not [effect for effect in rig.wait(1_000) if isinstance(effect, do.ProbeNode)]


def test_a_dead_node_is_not_known_and_may_not_come_back_under_its_id() -> None:
    rig = Rig(nodes=1)
    rig(on.NodeLeft(node_id(1), "the operator stopped it"))
    rig.beat(1)
    assert not rig.cluster.nodes.is_known(node_id(1))
    with pytest.raises(Refused, match=r"declared dead.*new node id"):
        rig(on.NodeRegistered(node(1)))


def test_after_a_restart_raylets_hear_of_nodes_that_had_died_before_and_those_stay_dead() -> None:
    rig = Rig(nodes=2)
    rig(on.NodeRefused(node_id(1)))
    after = rig.restarted()
    told = {record.node_id: record.alive for record in map(pb.Node.FromString, after.cluster.snapshot("nodes"))}
    assert told == {node_id(1): False, node_id(2): True}
    with pytest.raises(Refused, match=r"declared dead.*refuses connections.*new node id"):
        after(on.NodeRegistered(node(1)))


def test_a_raylet_at_the_address_of_another_replaces_it() -> None:
    rig = Rig(nodes=1)
    again = node(2)
    again.address = "10.0.0.1:70"
    rig(on.NodeRegistered(again))
    assert not rig.cluster.nodes.is_alive(node_id(1))
    assert rig.cluster.nodes.is_alive(node_id(2))


def test_changed_resources_go_out_in_one_batch_and_only_once() -> None:
    rig = Rig(nodes=3)
    rig(on.ResourceTickCame())
    rig.beat(1, 2)
    rig.beat(3, 1)
    rig.beat(1, 0)
    batch = pb.NodeList.FromString(only(rig(on.ResourceTickCame()), do.Publish).payload)
    assert {n.node_id: n.available["CPU"] for n in batch.nodes} == {node_id(1): 0, node_id(3): CPU}
    assert rig(on.ResourceTickCame()) == []


def test_a_heartbeat_with_the_same_resources_is_no_news_to_other_nodes() -> None:
    rig = Rig(nodes=3)
    rig.beat(1, 2)
    rig(on.ResourceTickCame())
    rig.beat(1, 2)
    assert rig(on.ResourceTickCame()) == []
    rig.beat(1, 1)
    batch = pb.NodeList.FromString(only(rig(on.ResourceTickCame()), do.Publish).payload)
    assert [n.available["CPU"] for n in batch.nodes] == [CPU]


def test_a_dead_node_is_in_the_next_batch_so_that_views_drop_it() -> None:
    rig = Rig(nodes=1)
    rig(on.ResourceTickCame())
    rig(on.NodeLeft(node_id(1), "end"))
    (dead,) = pb.NodeList.FromString(only(rig(on.ResourceTickCame()), do.Publish).payload).nodes
    assert not dead.alive


def test_a_draining_node_is_told_and_gets_nothing_new() -> None:
    rig = Rig(nodes=1)
    effects = rig(on.NodeDrainRequested(node_id(1), "maintenance", 5_000))
    assert only(effects, do.DrainRaylet).reason == "maintenance"
    assert rig.cluster.nodes.living[node_id(1)].view.draining


def test_draining_an_unknown_node_is_refused() -> None:
    with pytest.raises(Refused, match="no living node"):
        Rig()(on.NodeDrainRequested(node_id(9), "", 0))


def test_reports_and_answers_in_any_order_leave_the_view_right() -> None:
    rig = Rig(nodes=1)
    n = rig.cluster.nodes.living[node_id(1)]
    need = {"CPU": CPU}
    since = n.reserve(need)
    assert rig.free(1) == 3
    n.settle(need, True, since)
    assert rig.free(1) == 3
    since = n.reserve(need)
    rig.beat(1, 2)  # the report that includes both
    n.settle(need, True, since)
    assert rig.free(1) == 2
    since = n.reserve(need)
    n.settle(need, False, since)
    assert rig.free(1) == 2
    n.release(need)
    n.release({"CPU": 10 * CPU})
    assert rig.free(1) == 4  # never above the total


def test_pending_demands_are_shown_with_their_node() -> None:
    rig = Rig(nodes=1)
    demand = pb.PendingDemand(resources={"GPU": CPU}, count=3, reason="no GPU")
    rig(on.NodeBeat(pb.HeartbeatRequest(node_id=node_id(1), pending=[demand], queued_leases=3)))
    (shown,) = rig.cluster.nodes
    assert list(shown.pending) == [demand]
    rig.beat(1)
    assert not shown.pending


def test_a_new_subscriber_of_nodes_gets_them_all_first() -> None:
    rig = Rig(nodes=2)
    rig(on.NodeLeft(node_id(2), "end"))
    assert {pb.Node.FromString(row).alive for row in rig.cluster.snapshot("nodes")} == {True, False}
    (living,) = pb.NodeList.FromString(rig.cluster.snapshot("resources")[0]).nodes
    assert living.node_id == node_id(1)


def test_after_a_restart_a_node_is_unknown_until_it_registers_and_dead_after_its_term() -> None:
    rig = Rig(nodes=2).restarted()
    assert not rig.cluster.nodes.is_known(node_id(1))
    assert not every(rig(on.NodeRegistered(node(1))), do.ForgetNode)
    assert rig.cluster.nodes.is_known(node_id(1))
    rig.wait(11_000, 1)
    assert rig.cluster.nodes.is_alive(node_id(1))
    assert not rig.cluster.nodes.is_alive(node_id(2))


def test_who_subscribes_after_a_broken_stream_hears_of_the_workers_that_died_lately() -> None:
    rig = Rig(nodes=1)
    assert rig.cluster.snapshot("workers") == []
    report = pb.ReportWorkerDeathRequest(worker_id=bytes(15) + b"w", node_id=node_id(1), cause="it died")
    rig(on.WorkerDied(report))
    assert rig.cluster.snapshot("workers") == [report.SerializeToString()]
    rig.now_ms += 61_000
    rig(on.TimePassed())
    assert rig.cluster.snapshot("workers") == []


def test_a_drain_outlives_a_restart_and_a_raylet_that_was_not_told_is_told_then() -> None:
    rig = Rig(nodes=1)
    rig(on.NodeDrainRequested(node_id(1), "maintenance", 60_000))
    after = rig.restarted()
    after.now_ms += 10_000
    told = only(after(on.NodeRegistered(node(1))), do.DrainRaylet)
    assert (told.reason, told.within_ms) == ("maintenance", 50_000)
    assert after.cluster.nodes.is_draining(node_id(1))
    knows = node(1)
    knows.draining = True
    assert not every(rig.restarted()(on.NodeRegistered(knows)), do.DrainRaylet)


def test_a_drained_node_that_does_not_end_by_its_deadline_is_dead_some_time_later() -> None:
    rig = Rig(nodes=1)
    rig(on.NodeDrainRequested(node_id(1), "maintenance", 5_000))
    rig.wait(10_000, 1)
    assert rig.cluster.nodes.is_alive(node_id(1))
    rig.wait(11_000, 1)
    assert rig.cluster.nodes.dead[node_id(1)].death_cause == "it was to end (maintenance), and did not by its deadline"
