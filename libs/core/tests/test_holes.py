"""What a forked process allocates copies fewer of its parent's pages once the holes in the parent's heap are filled."""

import subprocess
import sys

import pytest
from shoal._worker.holes import _MOST_BYTES, fill_holes

_FAULTS_OF_A_CHILD = """
import os, resource
from shoal._worker.holes import fill_holes

def faults():
    read, write = os.pipe()
    if os.fork() == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        made = [bytes(size - 33) for size in range(48, 513, 16) for _ in range(20)]
        os.write(write, b"%d" % (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
        os._exit(0)
    os.wait()
    return int(os.read(read, 20))

# As imports leave it: one free place in many a pool.
heap = [bytes(size - 33) for size in range(48, 513, 16) for _ in range(2000)]
del heap[::97]
before = faults()
filled = fill_holes()
print(before, faults())
"""


def test_a_child_copies_fewer_pages_when_the_holes_are_filled():
    ran = subprocess.run([sys.executable, "-c", _FAULTS_OF_A_CHILD], check=True, capture_output=True, text=True, timeout=60)
    before, after = map(int, ran.stdout.split())
    assert after < before / 2, f"{before} page faults with holes, {after} without"


@pytest.mark.parametrize("allocator", ["pymalloc", "malloc"])
def test_with_an_allocator_that_has_other_pools_it_ends_and_keeps_little(allocator):
    code = "import sys; from shoal._worker.holes import fill_holes; print(sum(map(sys.getsizeof, fill_holes())))"
    ran = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60, env={"PYTHONMALLOC": allocator, "PATH": "/usr/bin"}
    )
    assert int(ran.stdout) <= 33 * _MOST_BYTES


def test_what_it_keeps_is_of_every_size_that_has_pools():
    assert {(sys.getsizeof(one) + 15) // 16 * 16 for one in fill_holes()} == set(range(16, 513, 16))
