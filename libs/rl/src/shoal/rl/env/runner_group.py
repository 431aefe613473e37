"""The env runners of an algorithm: one in its own process, or actors of which dead ones are replaced."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import shoal
from shoal.exceptions import GetTimeoutError, RayActorError, RayTaskError

from ..connectors.running_stats import RunningStats
from ..core.networks import Floats
from ..errors import EnvRunnersLostError, RLError
from .fragment import Episode, Fragment
from .runner import EnvRunner, RunnerPlan, RunnerState

logger = logging.getLogger("shoal.rl")
# How much longer than a runner's own limit is waited for what it says about it.
_GRACE_S = 5.0
MAX_FAILED_STARTS = 3


class RunnerActor:
    """A runner in a process of its own. It is made by a call, not with the actor, so that what an environment raises comes back as it is."""

    def __init__(self) -> None:
        self.runner: EnvRunner | None = None

    def setup(self, plan: RunnerPlan, index: int, generation: int) -> tuple[Any, Any, int]:
        """The spaces, and the process id."""
        self.runner = EnvRunner(plan, index, remote=True, generation=generation)
        return (*self.runner.get_spaces(), self.runner.pid())

    def call(self, method: str, *arguments: Any) -> Any:
        assert self.runner is not None
        return getattr(self.runner, method)(*arguments)

    def apply(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.runner, *arguments)


class Fleet:
    """Which runners there are, how often they were replaced, and what they were asked. Decides; `EnvRunnerGroup` acts.

    >>> fleet = Fleet(2, restart=True, ignore=False, limit=1)
    >>> fleet.lost(1, "killed"), fleet.generation[1], fleet.restarts
    ('replace', 1, 1)
    >>> fleet.lost(2, "killed")
    Traceback (most recent call last):
    shoal.rl.errors.EnvRunnersLostError: env runner 2 was lost (killed), and 1 of at most max_num_env_runner_restarts=1 were already replaced
    """

    def __init__(self, count: int, restart: bool, ignore: bool, limit: int) -> None:
        self.restart, self.ignore, self.limit = restart, ignore, limit
        self.generation = dict.fromkeys(range(1, count + 1), 0)
        self.restarts = 0
        self.dropped = 0
        self._failed_starts: dict[int, int] = {}

    def started(self, index: int) -> None:
        """It has its environments."""
        self._failed_starts.pop(index, None)

    def failed_to_start(self, index: int, cause: str) -> None:
        """What ends a process while it makes its environments will end the next one too.

        Raises:
            EnvRunnersLostError: it happened three times in a row.
        """
        self._failed_starts[index] = self._failed_starts.get(index, 0) + 1
        if self._failed_starts[index] >= MAX_FAILED_STARTS:
            raise EnvRunnersLostError(f"env runner {index} ended {MAX_FAILED_STARTS} times in a row while it made its environments: {cause}")

    def lost(self, index: int, cause: str) -> str:
        """`replace` or `drop`.

        Raises:
            EnvRunnersLostError: neither may be.
        """
        if self.restart and self.restarts < self.limit:
            self.restarts += 1
            self.generation[index] += 1
            return "replace"
        if self.ignore and len(self.generation) > 1:
            del self.generation[index]
            self.dropped += 1
            return "drop"
        if self.restart:
            raise EnvRunnersLostError(
                f"env runner {index} was lost ({cause}), and {self.restarts} of at most max_num_env_runner_restarts={self.limit} were already replaced"
            )
        rest = "it was the last one" if self.ignore else "restart_failed_env_runners and ignore_env_runner_failures are both False"
        raise EnvRunnersLostError(f"env runner {index} was lost ({cause}), and {rest}")


class EnvRunnerGroup:
    """Env runners, called together."""

    def __init__(self, plan: RunnerPlan, config: Any, count: int, on_recreated: Callable[[list[int]], None]) -> None:
        self.plan, self.config, self.on_recreated = plan, config, on_recreated
        self.fleet = Fleet(count, config.restart_failed_env_runners, config.ignore_env_runner_failures, int(config.max_num_env_runner_restarts))
        self.local: EnvRunner | None = None
        self.pids: dict[int, int] = {}
        self._actors: dict[int, Any] = {}
        self._starting: dict[int, Any] = {}
        self._in_flight: dict[Any, tuple[int, float]] = {}  # of sample_next: reference -> runner, when it was asked
        self._spaces: tuple[Any, Any] | None = None
        if count == 0:
            self.local = EnvRunner(plan)
            self._spaces = self.local.get_spaces()
        else:
            resources = dict(config.custom_resources_per_env_runner)
            self._remote = shoal.remote(num_cpus=config.num_cpus_per_env_runner, resources=resources)(RunnerActor)
            for index in list(self.fleet.generation):
                self._start(index)

    # -- life ------------------------------------------------------------------------------------------------

    def _start(self, index: int) -> None:
        actor = self._remote.remote()
        self._actors[index] = actor
        self._starting[index] = actor.setup.remote(self.plan, index, self.fleet.generation[index])

    def wait_ready(self) -> tuple[Any, Any]:
        """Waits until every runner has its environments; the spaces.

        Raises:
            EnvError, SpaceError: what a runner met.
            EnvRunnersLostError: one did not start in `env_runner_restore_timeout_s`.
        """
        timeout_s = float(self.config.env_runner_restore_timeout_s)
        deadline = time.monotonic() + timeout_s
        while self._starting:
            index, call = next(iter(self._starting.items()))
            try:
                *spaces, pid = shoal.get(call, timeout=max(0.0, deadline - time.monotonic()))
                self._spaces = (spaces[0], spaces[1])
                self.pids[index] = pid
                self.fleet.started(index)
                del self._starting[index]
            except GetTimeoutError as error:
                asked = f"{self.config.num_cpus_per_env_runner:g} CPU" + (
                    f" and {extra}" if (extra := dict(self.config.custom_resources_per_env_runner)) else ""
                )
                raise EnvRunnersLostError(
                    f"env runner {index} did not start within env_runner_restore_timeout_s={timeout_s:g}. It asks for {asked}; "
                    f"free in the cluster: {shoal.available_resources()}"
                ) from error
            except RayActorError as error:
                self.fleet.failed_to_start(index, str(error))
                self._replace(index, str(error))
            except RayTaskError as error:
                raise cause_of(error) from error
        assert self._spaces is not None
        return self._spaces

    def _replace(self, index: int, cause: str) -> bool:
        """Whether there is a new runner of this number."""
        dead = self._actors.pop(index, None)
        self._starting.pop(index, None)
        self.pids.pop(index, None)
        decision = self.fleet.lost(index, cause.splitlines()[0] if cause else "it ended")
        if dead is not None:
            shoal.kill(dead)
        logger.warning("env runner %d was lost, %s: %s", index, "replacing it" if decision == "replace" else "going on without it", cause)
        if decision == "drop":
            return False
        self._start(index)
        self.wait_ready()
        self.on_recreated([index])
        return True

    @property
    def count(self) -> int:
        return len(self._actors)

    def healthy(self) -> dict[str, int]:
        return {
            "num_healthy_workers": self.count, "num_remote_worker_restarts": self.fleet.restarts, "num_env_runners_dropped_lifetime": self.fleet.dropped,
        }  # fmt: skip

    def stop(self) -> None:
        if self.local is not None:
            self.local.stop()
        if self.plan.vectorize_mode == "async" and self._actors:
            # Their environments are processes of their own, which end more quietly when they are asked to.
            shoal.wait([actor.call.remote("stop") for actor in self._actors.values()], num_returns=len(self._actors), timeout=_GRACE_S)
        for actor in self._actors.values():
            shoal.kill(actor)
        self._actors.clear()
        self._in_flight.clear()

    # -- calls to all ----------------------------------------------------------------------------------------

    def round(self, call: Callable[[Any, int], Any], timeout_s: float, what: str) -> dict[int, Any]:
        """One answer of every runner, by its number. A runner that dies is replaced and asked again. `call(actor, number)` gives the reference."""
        self.wait_ready()
        pending = {call(actor, index): index for index, actor in self._actors.items()}
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + timeout_s
        while pending:
            ready, _ = shoal.wait(list(pending), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                late = sorted(pending.values())
                raise EnvRunnersLostError(f"env runners {late} (of {self.count}) have not returned {what} within {timeout_s:g} s")
            index = pending.pop(ready[0])
            try:
                answers[index] = shoal.get(ready[0])
            except RayActorError as error:
                if self._replace(index, str(error)):
                    pending[call(self._actors[index], index)] = index
            except RayTaskError as error:
                raise cause_of(error) from error
        return answers

    def sample(self, steps: int, theta: Floats, epsilon: float, statistics: RunningStats | None) -> list[tuple[Fragment, RunningStats | None]]:
        """A fragment of every runner, in the order of their numbers, all played with these parameters."""
        if self.local is not None:
            return [self.local.sample(steps, theta, epsilon, statistics)]
        shared = shoal.put(theta)
        answers = self.round(
            lambda actor, _: actor.call.remote("sample", steps, shared, epsilon, statistics),
            float(self.config.sample_timeout_s),
            f"{steps} steps (sample_timeout_s; raise it or lower rollout_fragment_length)",
        )
        return [answers[index] for index in sorted(answers)]

    def sample_next(self, steps: int, theta: Floats, epsilon: float, statistics: RunningStats | None) -> list[tuple[Fragment, RunningStats | None]]:
        """The fragments that are there, at least one; their runners go on with these parameters while the caller learns. For off-policy algorithms."""
        if self.local is not None:
            return [self.local.sample(steps, theta, epsilon, statistics)]
        self.wait_ready()
        shared = shoal.put(theta)
        timeout_s = float(self.config.sample_timeout_s)

        def ask(index: int) -> None:
            self._in_flight[self._actors[index].call.remote("sample", steps, shared, epsilon, statistics)] = (index, time.monotonic())

        asked = {index for index, _ in self._in_flight.values()}
        for index in self._actors:
            if index not in asked:
                ask(index)
        while True:
            first = min(when for _, when in self._in_flight.values())
            calls = list(self._in_flight)
            ready, _ = shoal.wait(calls, num_returns=1, timeout=max(0.0, first + timeout_s - time.monotonic()))
            if not ready:
                late = sorted(index for index, when in self._in_flight.values() if when == first)
                raise EnvRunnersLostError(f"env runners {late} (of {self.count}) have not returned {steps} steps within sample_timeout_s={timeout_s:g}")
            ready = shoal.wait(calls, num_returns=len(calls), timeout=0)[0]
            gathered = []
            for call in ready:
                index, _ = self._in_flight.pop(call)
                try:
                    gathered.append(shoal.get(call))
                    ask(index)
                except RayActorError as error:
                    if self._replace(index, str(error)):
                        ask(index)
                except RayTaskError as error:
                    raise cause_of(error) from error
            if gathered:
                return gathered

    def play(self, duration: int, unit: str, theta: Floats, statistics: RunningStats | None) -> list[Episode]:
        """New episodes for an evaluation: `duration` of them, or those that end within about so many `timesteps`."""
        runners, envs = max(1, self.count), self.plan.num_envs
        steps = -(-duration // (runners * envs))
        timeout_s = float(self.config.sample_timeout_s)
        if self.local is not None:
            if unit == "timesteps":
                return self.local.play_steps(steps, theta, statistics)
            return self.local.play_episodes(quota(duration, envs), theta, statistics, timeout_s)
        shared = shoal.put(theta)
        what = f"their part of {duration} {unit} (evaluation_sample_timeout_s)"
        if unit == "timesteps":
            answers = self.round(lambda actor, _: actor.call.remote("play_steps", steps, shared, statistics), timeout_s, what)
        else:
            self.wait_ready()
            shares = dict(zip(sorted(self._actors), quota(duration, runners), strict=True))
            answers = self.round(
                lambda actor, index: actor.call.remote("play_episodes", quota(int(shares[index]), envs), shared, statistics, timeout_s),
                # The runner itself says more about why: it comes first.
                timeout_s + _GRACE_S,
                what,
            )
        return [episode for index in sorted(answers) for episode in answers[index]]

    def foreach_env_runner(self, func: Callable[[EnvRunner], Any], *, timeout_seconds: float = 60.0) -> list[Any]:
        """`func(runner)` of every runner, where it runs; the results by number."""
        if self.local is not None:
            return [func(self.local)]
        answers = self.round(lambda actor, _: actor.apply.remote(func), timeout_seconds, f"the result of {func!r}")
        return [answers[index] for index in sorted(answers)]

    def get_metrics(self) -> list[dict[str, Any]]:
        """What callbacks have logged in the runners."""
        if not self.plan.callbacks:
            return []
        if self.local is not None:
            return [self.local.get_metrics()]
        answers = self.round(lambda actor, _: actor.call.remote("get_metrics"), float(self.config.sample_timeout_s), "their metrics")
        return list(answers.values())

    def get_state(self) -> RunnerState | None:
        """Of the runner in this process. Actors keep none: a restored algorithm begins new episodes there."""
        return self.local.get_state() if self.local is not None else None


def quota(total: int, among: int) -> np.ndarray:
    """`total` in `among` whole parts, the first ones larger by one.

    >>> quota(5, 3).tolist()
    [2, 2, 1]
    """
    return np.array([total // among + (index < total % among) for index in range(among)], np.int64)


def cause_of(error: RayTaskError) -> BaseException:
    """What the runner raised, if it is one of ours; else the error with the remote traceback."""
    return error.cause if isinstance(error.cause, RLError) else error
