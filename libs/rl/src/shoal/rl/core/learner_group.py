"""The learners of an algorithm: one in its own process, or several actors."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import shoal
from shoal.exceptions import GetTimeoutError, RayActorError, RayTaskError

from ..errors import LearnerLostError, RLError
from .learner import GROUP_TIMEOUT_S, Learner, LearnerPlan
from .networks import Floats, NetworkSpec

_START_TIMEOUT_S = 120.0


def _find(kind: str) -> type[Learner]:
    """`module:class`, imported where it is needed: torch only there."""
    home, _, name = kind.partition(":")
    found: type[Learner] = getattr(import_module(home), name)
    return found


class _LearnerActor:
    """Imports the algorithm's learner where it runs."""

    def __init__(self, kind: str, plan: LearnerPlan, rank: int, world: int) -> None:
        self.learner: Learner = _find(kind)(plan, rank, world)

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.learner, method)(*arguments)


class LearnerGroup:
    """`update(parts)` with one part for each learner.

    Raises (all methods):
        LearnerLostError: an actor ended or did not answer. Its optimiser is lost with it: restore from a checkpoint.
    """

    def __init__(self, kind: str, plan: LearnerPlan, count: int, cpus: float, gpus: float, resources: dict[str, float]) -> None:
        self.local: Learner | None = None
        self._actors: list[Any] = []
        self.pids: list[int] = []
        if count == 0:
            self.local = _find(kind)(plan)
            return
        actor = shoal.remote(num_cpus=cpus, num_gpus=gpus, resources=dict(resources))(_LearnerActor)
        self._actors = [actor.remote(kind, plan, rank, count) for rank in range(count)]
        asked = f"{cpus:g} CPU" + (f", {gpus:g} GPU" if gpus else "") + (f", {dict(resources)}" if resources else "")
        address = self._get([self._actors[0].call.remote("offer_rendezvous")], _START_TIMEOUT_S, f"{count} learners to start, each of which asks for {asked}")[
            0
        ]
        self.pids = self._get([one.call.remote("join", address) for one in self._actors], _START_TIMEOUT_S, f"{count} learners to meet at {address}")

    @property
    def count(self) -> int:
        return max(1, len(self._actors))

    def update(self, parts: list[Any], timestep: int) -> tuple[Floats, dict[str, Any], list[Any]]:
        """The new parameters, what the first learner reports, and what each wants back."""
        if self.local is not None:
            theta, stats, back = self.local.update(parts[0], timestep)
            return theta, stats, [back]
        calls = [actor.call.remote("update", part, timestep) for actor, part in zip(self._actors, parts, strict=True)]
        answers = self._get(calls, GROUP_TIMEOUT_S * 2, f"{len(calls)} learners to learn from a batch")
        return answers[0][0], answers[0][1], [answer[2] for answer in answers]

    def get_state(self) -> list[dict[str, Any]]:
        """Of each learner."""
        if self.local is not None:
            return [self.local.get_state()]
        return self._get([actor.call.remote("get_state") for actor in self._actors], GROUP_TIMEOUT_S, "the learners' state")

    def set_state(self, states: list[dict[str, Any]]) -> None:
        """A learner beyond those that were saved takes the first one's: parameters and optimiser are equal in all."""
        if self.local is not None:
            self.local.set_state(states[0])
            return
        calls = [actor.call.remote("set_state", states[rank] if rank < len(states) else states[0]) for rank, actor in enumerate(self._actors)]
        self._get(calls, GROUP_TIMEOUT_S, "the learners to take their state")

    def stop(self) -> None:
        if self.local is not None:
            self.local.leave()
        for actor in self._actors:
            shoal.kill(actor)
        self._actors = []

    def _get(self, calls: list[Any], timeout_s: float, what: str) -> list[Any]:
        try:
            return list(shoal.get(calls, timeout=timeout_s))
        except GetTimeoutError as error:
            raise LearnerLostError(f"waited {timeout_s:g} s for {what}") from error
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, RLError) else error) from error
        except RayActorError as error:
            raise LearnerLostError(f"a learner ended while waiting for {what}: {error}; restore from the last checkpoint") from error


def learner_group(
    numpy_kind: str, torch_kind: str, config: Any, spec: NetworkSpec, theta: Floats, discrete: bool, more: dict[str, Any] | None = None
) -> LearnerGroup:
    """The learners that the settings ask for: one alone on the CPU in numpy, several, or on GPUs, in torch. `more`: settings beyond the user's.

    They get no environment and no functions of the user, which need not be importable there."""
    plain = (int, float, str, bool, type(None), list, tuple)
    settings = {name: value for name, value in config.items() if isinstance(value, plain) and name != "env"}
    gpus, count, cpus = float(config.get("num_gpus_per_learner", 0)), int(config.get("num_learners", 0)), config.get("num_cpus_per_learner", "auto")
    plan = LearnerPlan({**settings, **(more or {})}, spec, theta, discrete, gpus > 0, config.seed)
    kind = torch_kind if gpus > 0 or count > 0 else numpy_kind
    return LearnerGroup(kind, plan, count, 1.0 if cpus == "auto" else float(cpus), gpus, dict(config.get("custom_resources_per_learner", {})))
