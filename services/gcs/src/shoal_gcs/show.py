"""What the control store says of itself, read when asked: nothing is counted on the hot path."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from shoal_base.metrics import Registry

from .v1 import gcs_pb2 as pb

if TYPE_CHECKING:
    from .service import Service


def metrics_text(service: Service) -> str:
    registry = Registry()
    cluster = service.cluster
    by_state = {
        ("shoal_gcs_nodes", "Nodes, by state"): Counter("alive" if node.alive else "dead" for node in cluster.nodes),
        ("shoal_gcs_jobs", "Jobs, by state"): Counter("finished" if job.finished else "running" for job in cluster.jobs),
        ("shoal_gcs_actors", "Actors, by state"): Counter(pb.ActorState.Name(actor.state).removeprefix("ACTOR_").lower() for actor in cluster.actors),
        ("shoal_gcs_placement_groups", "Placement groups, by state"): Counter(
            pb.PlacementGroupState.Name(group.state).removeprefix("PG_").lower() for group in cluster.groups
        ),
        ("shoal_gcs_waiting", "What fits nowhere now, by kind"): Counter(actors=cluster.actors.placement.waiting(), placement_groups=cluster.groups.waiting()),
    }
    for (name, doc), counts in by_state.items():
        gauge = registry.gauge(name, doc, ("state",))
        for state, count in counts.items():
            gauge.set(count, state=state)
    for name, doc, value in (
        ("shoal_gcs_epoch", "Starts on this storage", service.opened.epoch),
        ("shoal_gcs_events_total", "Events handled since the start", service.handled),
        ("shoal_gcs_keys", "Keys held", len(cluster.kv)),
        ("shoal_gcs_key_bytes", "Bytes of their values", cluster.kv.size_bytes),
        ("shoal_gcs_subscribers", "Streams of events", len(service.hub.subscribers)),
        ("shoal_gcs_published_total", "Events published to somebody", service.hub.published),
        ("shoal_gcs_subscribers_cut_total", "Subscribers that did not keep up", service.hub.cut),
        ("shoal_gcs_write_batches_total", "Transactions", service.writer.batches),
        ("shoal_gcs_written_records_total", "Records written or deleted", service.writer.records),
    ):
        registry.gauge(name, doc).set(value)
    return registry.render()
