"""Easy Ray Threads over a list, one of whose items fails."""

from easy_ray_threads import Processor


def half(x):
    if x == 3:
        raise ValueError("no threes")
    return x / 2


found = Processor().process(range(6), half)
assert {"item": 3, "error": "no threes"} in found
assert sorted(x for x in found if not isinstance(x, dict)) == [0.0, 0.5, 1.0, 2.0, 2.5]
