"""A job that ends right while a worker node, and then the control store, are killed under it; tells what was lost and how long it took.

    python examples/survive.py
    python examples/survive.py --parts 40
"""

from __future__ import annotations

import argparse
import threading
import time
from collections import Counter

import numpy as np
import shoal
from shoal.cluster_utils import Cluster, ClusterNode

NUMBERS = 1 << 19  # in a part: 4 MiB


@shoal.remote(num_returns=2, max_retries=-1)
def part(seed: int, pause_s: float) -> tuple[np.ndarray, str]:
    """Numbers, and where they were made: there they lie."""
    time.sleep(pause_s)
    return np.random.default_rng(seed).integers(0, 1000, NUMBERS), shoal.get_runtime_context().get_node_id()


@shoal.remote(max_retries=-1)
def histogram(numbers: np.ndarray, pause_s: float) -> np.ndarray:
    time.sleep(pause_s)
    return np.bincount(numbers, minlength=1000)


@shoal.remote(max_restarts=-1, max_task_retries=-1, num_cpus=0)
class Progress:
    """Restarts empty when its node dies, and its callers go on as if nothing had been."""

    def __init__(self) -> None:
        self.done: set[int] = set()

    def add(self, seed: int) -> int:
        self.done.add(seed)
        return len(self.done)


def kill_node(cluster: Cluster, node: ClusterNode) -> None:
    cluster.remove_node(node, allow_graceful=False)


def kill_control_store(cluster: Cluster) -> None:
    assert cluster.head_node is not None
    print(f"the control store, process {cluster.head_node.kill('gcs')}, is killed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=24)
    parser.add_argument("--pause-s", type=float, default=0.1, help="what each task takes beside its work")
    given = parser.parse_args()
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster:
        shoal.init(address=cluster.address, log_to_driver=False)  # before there is another node: this program lives on the head's
        doomed, _ = cluster.add_node(num_cpus=2), cluster.add_node(num_cpus=2)
        began = time.perf_counter()
        pairs = [part.remote(seed, given.pause_s) for seed in range(given.parts)]
        numbers = [pair[0] for pair in pairs]
        places = Counter(shoal.get([pair[1] for pair in pairs], timeout=120))
        del pairs
        print(f"{given.parts} parts of 4 MiB were made on {len(places)} nodes in {time.perf_counter() - began:.1f} s")
        progress = Progress.remote()

        kill_node(cluster, doomed)
        lost_at = time.perf_counter()
        print(f"worker node {doomed.node_id[:8]} is killed: {places[doomed.node_id]} parts lay there and nowhere else")
        counts = [histogram.remote(one, given.pause_s) for one in numbers]
        store_lost = threading.Timer(0.5, kill_control_store, (cluster,))
        store_lost.start()
        total = np.zeros(1000, dtype=np.int64)
        told = 0
        for seed, ref in enumerate(counts):
            total += shoal.get(ref, timeout=180)
            told = shoal.get(progress.add.remote(seed), timeout=120)
        store_lost.join()
        took = time.perf_counter() - lost_at
        right = sum(np.bincount(np.random.default_rng(seed).integers(0, 1000, NUMBERS), minlength=1000) for seed in range(given.parts))
        assert (total == right).all(), "the answer is wrong"
        named = Progress.options(name="after").remote()  # a new actor, by the control store that was started again
        assert shoal.get(named.add.remote(0), timeout=60) == 1
        print(f"{int(total.sum()):,} numbers were counted right, {took:.1f} s after the first loss")
        print(f"the actor that notes progress saw {told} of {given.parts} parts in its last life")
        shoal.shutdown()


if __name__ == "__main__":
    main()
