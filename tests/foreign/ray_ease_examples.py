"""The examples of ray-ease's own description: tasks and actors called as if they were plain."""

import time

import ray_ease as rez

rez.init(num_cpus=4)


@rez.parallelize
def square(x):
    return x * x


assert rez.retrieve([square(i) for i in range(4)], ordered=True) == [0, 1, 4, 9]


@rez.parallelize
class Counter:
    def __init__(self):
        self.i = 0

    def get(self):
        return self.i

    def incr(self, value):
        self.i += value


counter = Counter()
for _ in range(10):
    counter.incr(1)
assert rez.retrieve(counter.get()) == 10


@rez.parallelize
def do_some_work(x):
    time.sleep(1)
    return x


rez.retrieve([do_some_work(0)])
started = time.monotonic()
assert sorted(rez.retrieve([do_some_work(x) for x in range(3)])) == [0, 1, 2]
print(f"{time.monotonic() - started:.2f} s")
