"""What a node says it has."""

from __future__ import annotations

import pytest
from shoal._supervisor import resources
from shoal._supervisor.resources import count_gpus, node_labels, node_resources, short_model, store_bytes


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.setattr(resources, "available_memory", lambda: 100 << 30)
    monkeypatch.setattr(resources, "available_cpus", lambda: 8.0)
    monkeypatch.setattr(resources, "count_gpus", lambda: 2)
    monkeypatch.setattr(resources, "accelerator_type", lambda: "H200")


def test_what_is_not_given_is_detected(machine):
    found = node_resources(object_store_bytes=30 << 30, head=True)
    assert found == {
        "CPU": 80000, "GPU": 20000, "memory": (60 << 30) * 10000, "object_store_memory": (30 << 30) * 10000, "node:127.0.0.1": 10000,
        "node:__internal_head__": 10000, "accelerator_type:H200": 10000,
    }  # fmt: skip


def test_what_is_given_wins_and_nothing_is_left_out(machine):
    found = node_resources(num_cpus=0, num_gpus=0, memory=1 << 30, custom={"thing": 0.5}, host="10.0.0.5")
    assert found == {"memory": (1 << 30) * 10000, "thing": 5000, "node:10.0.0.5": 10000}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_cpus": -1}, "num_cpus=-1"),
        ({"custom": {"CPU": 1}}, "num_cpus="),
        ({"custom": {"memory": 1}}, "memory="),
        ({"custom": {"x": -1}}, "cannot be negative"),
        ({"custom": {"x": 0.00001}}, "steps of"),
        ({"custom": {"": 1}}, "a name"),
    ],
)
def test_what_cannot_be_is_named(machine, given, message):
    with pytest.raises(ValueError, match=message):
        node_resources(**given)


def test_the_store_takes_a_share_of_the_memory_within_bounds(machine):
    assert store_bytes(None) == int((100 << 30) * 0.3)
    assert store_bytes(1 << 30) == 1 << 30
    with pytest.raises(ValueError, match="64 MiB"):
        store_bytes(1)
    with pytest.raises(ValueError, match="choose less"):
        store_bytes(200 << 30)


@pytest.mark.parametrize(("visible", "count"), [("", 0), ("-1", 0), ("0", 1), ("0,1, 2", 3), ("GPU-abc,GPU-def", 2), ("NoDevFiles", 0)])
def test_visible_devices_narrow_the_gpus(monkeypatch, visible, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus() == count


def test_more_gpus_than_are_visible_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert node_resources(num_gpus=1)["GPU"] == 10000
    with pytest.raises(ValueError, match=r"num_gpus=3: CUDA_VISIBLE_DEVICES='4,6' leaves 2 of them"):
        node_resources(num_gpus=3)


def test_models_have_rays_short_names():
    names = ("NVIDIA H100 80GB HBM3", "Tesla T4", "NVIDIA GeForce RTX 4090", "")
    assert [short_model(name) for name in names] == ["H100", "T4", "RTX", ""]


def test_labels_are_texts_and_the_nodes_own_cannot_be_set(monkeypatch):
    monkeypatch.setattr(resources, "count_gpus", lambda: 0)
    assert node_labels({"zone": "a"}, "ab", "n1") == {"shoal.io/node-id": "ab", "shoal.io/node-name": "n1", "zone": "a"}
    with pytest.raises(ValueError, match="set by the node itself"):
        node_labels({"shoal.io/node-id": "x"}, "ab", "")
    with pytest.raises(ValueError, match="text to text"):
        node_labels({"zone": 1}, "ab", "")  # type: ignore[dict-item]
