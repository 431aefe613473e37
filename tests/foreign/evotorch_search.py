"""EvoTorch evaluates a population in two actors."""

import torch
from evotorch import Problem
from evotorch.algorithms import SNES


def sphere(x):
    return torch.sum(x**2, dim=-1)


problem = Problem("min", sphere, solution_length=10, initial_bounds=(-1, 1), num_actors=2, vectorized=True)
search = SNES(problem, stdev_init=5)
search.run(1)
first = float(search.status["mean_eval"])
search.run(60)
last = float(search.status["mean_eval"])
assert len(problem.actors) == 2
assert last < first / 10, (first, last)
print(f"from {first:.1f} to {last:.3f}")
