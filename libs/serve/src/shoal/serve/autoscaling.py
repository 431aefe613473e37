"""How many replicas a deployment should have: a pure policy, without clock or cluster.

The relative difference between the requests that there are (running and queued) and the target is multiplied on the number of replicas, as in Ray Serve; a wish
is followed when it has lasted for its delay.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from .config import AutoscalingConfig

# A caller that reports a queue and is not heard of again for so many of its intervals is forgotten.
QUEUE_REPORT_LIFE_S = 5.0


@dataclass
class Autoscaler:
    """The policy's memory of one deployment. All times come from the caller and only grow."""

    config: AutoscalingConfig
    _running: dict[str, deque[tuple[float, float]]] = field(default_factory=dict)
    _queued: dict[str, tuple[float, int]] = field(default_factory=dict)
    _wish: tuple[int, float] | None = None  # direction, since when

    def record_running(self, now: float, replica_id: str, ongoing: float) -> None:
        self._running.setdefault(replica_id, deque()).append((now, ongoing))

    def record_queued(self, now: float, caller: str, queued: int) -> None:
        if queued:
            self._queued[caller] = (now, queued)
        else:
            self._queued.pop(caller, None)

    def forget(self, replica_id: str) -> None:
        self._running.pop(replica_id, None)

    def load(self, now: float) -> float:
        """Requests that there are, averaged over the look-back period, and those queued now."""
        total = 0.0
        for samples in self._running.values():
            while samples and samples[0][0] <= now - self.config.look_back_period_s:
                samples.popleft()
            values = [value for _, value in samples]
            if values:
                total += {"mean": sum(values) / len(values), "max": max(values), "min": min(values)}[self.config.aggregation_function]
        for caller, (when, _) in list(self._queued.items()):
            if now - when > QUEUE_REPORT_LIFE_S:
                del self._queued[caller]
        return total + sum(queued for _, queued in self._queued.values())

    def wanted(self, now: float, current: int) -> int:
        """The number that the load alone asks for."""
        config, load = self.config, self.load(now)
        if current == 0:
            wanted = math.ceil(load / config.target_ongoing_requests)
        else:
            ratio = load / (current * config.target_ongoing_requests)
            factor = config.upscaling_factor if ratio > 1 else config.downscaling_factor
            # Rounded, so that 0.1 + 0.2 of a replica does not make one more.
            wanted = math.ceil(round(current * (1 + (ratio - 1) * (factor or 1.0)), 6))
            if ratio < 1 and wanted >= current and (factor or 1.0) < 1 and current > 1:
                wanted = current - 1  # a small factor must not keep it from ever shrinking
            if wanted <= 0 and load > 0:
                wanted = 1
        return min(max(wanted, config.min_replicas), config.max_replicas)

    def decide(self, now: float, current: int) -> int:
        """The number of replicas to have from now on. Call it at every `metrics_interval_s`."""
        wanted = self.wanted(now, current)
        if wanted == current:
            self._wish = None
            return current
        if current == 0:
            self._wish = None
            return wanted  # somebody waits, and nobody is there
        direction = 1 if wanted > current else -1
        if self._wish is None or self._wish[0] != direction:
            self._wish = (direction, now)
        if now - self._wish[1] < self._delay_s(direction, wanted):
            if direction < 0 and wanted == 0 and current > 1 and now - self._wish[1] >= self.config.downscale_delay_s:
                return max(1, self.config.min_replicas)  # all but the last, which has a delay of its own
            return current
        self._wish = None
        return wanted

    def _delay_s(self, direction: int, wanted: int) -> float:
        config = self.config
        if direction > 0:
            return config.upscale_delay_s
        if wanted == 0 and config.downscale_to_zero_delay_s is not None:
            return config.downscale_to_zero_delay_s
        return config.downscale_delay_s
