"""What actors wrote down when they counted, beside what their callers were told.

A line of a ledger is `life number token`: this life of the actor applied this call as its number-th. It is written before the answer goes out, in one
write to a file that all lives append to, so its order is that of real time.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Calls:
    """What the caller knows. `retried`: the actor's calls are retried for ever, so every one must come through, once or more often."""

    retried: bool
    answered: dict[str, tuple[str, int]] = field(default_factory=dict)  # token: (life, number)
    unknown: set[str] = field(default_factory=set)  # an error said that the call may have run or not


def write(path: str, life: str, number: int, token: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, f"{life} {number} {token}\n".encode())
    finally:
        os.close(fd)


def broken_promises(lines: list[str], calls: Calls) -> list[str]:
    """Empty when every increment was counted as promised."""
    applied = [(life, int(number), token) for life, number, token in (line.split() for line in lines)]
    wrong = [f"{token} was applied, and nobody called it" for _, _, token in applied if token not in calls.answered and token not in calls.unknown]
    wrong += _lives(applied)
    times = Counter(token for _, _, token in applied)
    in_life = Counter((life, token) for life, _, token in applied)
    wrong += [f"{token} was applied {count} times in life {life}" for (life, token), count in in_life.items() if count > 1]
    if calls.retried:
        wrong += [f"{token} was never answered, though its call is retried for ever" for token in sorted(calls.unknown)]
    else:
        wrong += [f"{token} was applied {count} times, and its call must not be retried" for token, count in times.items() if count > 1]
    rows = set(applied)
    wrong += [f"{token} was answered as number {number} of life {life}, and was not applied so" for token, (life, number) in calls.answered.items()
              if (life, number, token) not in rows]  # fmt: skip
    return wrong


def _lives(applied: list[tuple[str, int, str]]) -> list[str]:
    """One life after another, and each counts 1, 2, 3."""
    wrong: list[str] = []
    counts: dict[str, int] = {}
    last = ""
    for life, number, token in applied:
        if life != last and life in counts:
            wrong.append(f"life {life} goes on at {token} after life {last} had begun: the actor lived twice")
        last = life
        counts[life] = counts.get(life, 0) + 1
        if number != counts[life]:
            wrong.append(f"{token} is number {number} of life {life}, and {counts[life]} were applied")
    return wrong
