"""RayMap in batches, in order and not, with errors as values and raised."""

from ray_map import RayMap


def square(x):
    if x == 3:
        raise ValueError("no threes")
    return x * x


mapped = RayMap(square, batch_size=8)
told = dict(mapped.imap(range(10), keep_order=False, safe_exceptions=True, ret_args=True, timeout=30.0))
assert isinstance(told.pop(3), ValueError)
assert told == {x: x * x for x in range(10) if x != 3}
results = mapped.map(range(1000), timeout=30.0, safe_exceptions=True)
assert [results[i] for i in (0, 4, 999)] == [0, 16, 998001]
try:
    list(mapped.imap(range(10)))
    raise AssertionError("nothing was raised")
except ValueError as error:
    print("raised", error)
