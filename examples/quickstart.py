"""An inverted index over the source files of Python's standard library: built by tasks and an actor, then queried.

    python examples/quickstart.py                               # a private cluster on this machine
    python examples/quickstart.py --address HOST:PORT           # a cluster that `shoal start --head` began
    python examples/quickstart.py --search "socket timeout"     # own words; may be given several times

Tasks split batches of files into words, the actor merges what they found, and neither passes through this program: it only hands references on.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sysconfig
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import shoal
from shoal.actor import ActorHandle

QUESTIONS = ("priority queue heap", "chunked transfer encoding", "deadlock lock acquire")
BATCH_BYTES = 512 * 1024
# Parts of names, so that "http connection" finds HTTPConnection and http_connection.
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


class Hit(NamedTuple):
    """An answer: a file that has all the words, and the line where the rarest of them first stands."""

    score: float
    path: str
    line: int


Batch = list[tuple[str, str]]
# Plain tuples (path, first line, how often), since there are half a million: pickle knows tuples best.
Posting = tuple[str, int, int]
Postings = dict[str, list[Posting]]


def find_words(batch: Batch) -> Postings:
    """The words of a batch of (path, text), each with the files it stands in."""
    found: Postings = {}
    for path, text in batch:
        times: Counter[str] = Counter()
        first_line: dict[str, int] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            for word in map(str.lower, WORD.findall(line)):
                times[word] += 1
                first_line.setdefault(word, number)
        for word, count in times.items():
            found.setdefault(word, []).append((path, first_line[word], count))
    return found


class Index:
    """All postings. A plain class: used as it is for the serial run, and as an actor for the parallel one."""

    def __init__(self) -> None:
        self.postings: Postings = {}
        self.files: set[str] = set()

    def add(self, found: Postings) -> None:
        for word, postings in found.items():
            self.postings.setdefault(word, []).extend(postings)
            self.files.update(path for path, _, _ in postings)

    def size(self) -> tuple[int, int]:
        """How many words, in how many files."""
        return len(self.postings), len(self.files)

    def search(self, question: str, limit: int = 3) -> list[Hit]:
        """The files that have all the words, best first: often there, and seldom elsewhere (tf-idf)."""
        words = question.lower().split()
        by_path = [{path: (line, times) for path, line, times in self.postings.get(word, ())} for word in words]
        if not by_path:
            return []
        rarest = min(by_path, key=len)
        weights = [math.log(len(self.files) / len(places)) if places else 0.0 for places in by_path]
        hits = [
            Hit(sum(weight * (1 + math.log(places[path][1])) for weight, places in zip(weights, by_path, strict=True)), path, rarest[path][0])
            for path in set.intersection(*map(set, by_path))
        ]
        return sorted(hits, key=lambda hit: (-hit.score, hit.path))[:limit]


# Two results: what was found stays in shared memory until the actor reads it; where the task ran comes back to this program.
@shoal.remote(num_returns=2, scheduling_strategy="SPREAD")
def find_words_task(batch: Batch) -> tuple[Postings, tuple[str, int]]:
    return find_words(batch), (shoal.get_runtime_context().get_node_id(), os.getpid())


IndexActor = shoal.remote(Index)


def read_batches(root: Path) -> Iterator[Batch]:
    """The files below `root`, in batches of about the same size."""
    batch: Batch = []
    size = 0
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not {"site-packages", "dist-packages"}.isdisjoint(name.parts) or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        batch.append((str(name), text))
        size += len(text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def build_serially(batches: Iterable[Batch]) -> Index:
    index = Index()
    for batch in batches:
        index.add(find_words(batch))
    return index


def build_in_parallel(batches: Iterable[Batch]) -> tuple[ActorHandle, list[tuple[str, int]]]:
    """The actor that holds the index, and for each task the node and the process it ran in."""
    index = IndexActor.remote()
    added, places = [], []
    for batch in batches:
        found, place = find_words_task.remote(batch)
        added.append(index.add.remote(found))
        places.append(place)
    shoal.get(added)
    return index, shoal.get(places)


def report_places(places: list[tuple[str, int]]) -> None:
    workers = Counter(places)
    nodes = {node for node, _ in workers}
    print(f"\n{len(places)} tasks ran on {len(nodes)} node{'s'[: len(nodes) > 1]}, in {len(workers)} worker processes:")
    for node in sorted(nodes):
        print(f"  node {node}")
        for (_, pid), count in sorted((worker, count) for worker, count in workers.items() if worker[0] == node):
            print(f"    worker {pid:>8}  {count:>4} tasks")


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--address", help="HOST:PORT of a running cluster; without it, this user's running one, else a private one")
    arguments.add_argument("--search", action="append", metavar="WORDS", help="what to look for; may be given several times")
    given = arguments.parse_args()

    root = Path(sysconfig.get_path("stdlib"))
    batches = list(read_batches(root))
    size_mb = sum(len(text) for batch in batches for _, text in batch) / 1e6
    print(f"{sum(map(len, batches))} files of {root}, {size_mb:.1f} MB, in {len(batches)} batches")

    start = time.perf_counter()
    with shoal.init(address=given.address):
        print(f"connected in {time.perf_counter() - start:.2f} s: {len(shoal.nodes())} node(s), {shoal.cluster_resources().get('CPU', 0):g} CPUs")

        start = time.perf_counter()
        local_index = build_serially(batches)
        serial_s = time.perf_counter() - start

        start = time.perf_counter()
        index, places = build_in_parallel(batches)
        parallel_s = time.perf_counter() - start

        words, files = shoal.get(index.size.remote())
        print(f"\n{words} words in {files} files")
        for question in given.search or QUESTIONS:
            hits = shoal.get(index.search.remote(question))
            if hits != local_index.search(question):
                raise SystemExit(f"the two indexes answer {question!r} differently: {hits}, serially {local_index.search(question)}")
            print(f"\n  {question}")
            for hit in hits:
                print(f"    {hit.score:6.1f}  {hit.path}:{hit.line}")
            if not hits:
                print("    no file has all of these words")

        report_places(places)
        print(f"\nserially {serial_s:.2f} s, in parallel {parallel_s:.2f} s: {serial_s / parallel_s:.1f} times as fast")


if __name__ == "__main__":
    main()
