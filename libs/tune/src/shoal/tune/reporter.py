"""What an experiment prints while it runs: a table that is drawn anew on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from .search.variants import flat_params
from .trial import Trial, lookup

if TYPE_CHECKING:
    from .execution.events import Tell
    from .execution.loop import TrialLoop

__all__ = ["Reporter", "render_table", "trial_rows"]

# Seconds between two drawings; a terminal shows more than a log file should hold.
_TERMINAL_EVERY_S = 0.5
_LINES_EVERY_S = 30.0
# Limits of the table.
_MAX_ROWS = 20
_MAX_PARAMS = 6
_MAX_CELL = 24
_ORDER = (Trial.RUNNING, Trial.ERROR, Trial.PAUSED, Trial.TERMINATED, Trial.PENDING)


def cell(value: Any) -> str:
    """
    >>> cell(0.00012345), cell(3), cell(None), cell("x" * 30)
    ('0.00012345', '3', '', 'xxxxxxxxxxxxxxxxxxxxxxx…')
    """
    if value is None:
        return ""
    text = f"{value:.5g}" if isinstance(value, float) else str(value).replace("\n", " ")
    return text if len(text) <= _MAX_CELL else text[: _MAX_CELL - 1] + "…"


def render_table(header: Sequence[str], rows: Iterable[Sequence[str]], width: int | None = None) -> list[str]:
    """Columns as wide as what is in them; numbers on the right.

    >>> print("\\n".join(render_table(["name", "n"], [["a", "10"], ["bcdef", "2"]])))
    name    n
    a      10
    bcdef   2
    """
    rows = [list(row) for row in rows]
    widths = [max([len(name), *(len(row[index]) for row in rows)]) for index, name in enumerate(header)]
    right = [bool(rows) and all(_is_number(row[index]) or not row[index] for row in rows) for index in range(len(header))]
    lines = []
    for row in [list(header), *rows]:
        cells = (text.rjust(size) if to_right else text.ljust(size) for text, size, to_right in zip(row, widths, right, strict=True))
        line = "  ".join(cells).rstrip()
        lines.append(line if width is None else line[:width])
    return lines


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def trial_rows(trials: Sequence[Trial], metrics: Sequence[str], mode: str | None = None) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table of trials; the best first when there is a metric, else those that run."""
    params: dict[str, None] = {}
    for trial in trials[:200]:
        params |= dict.fromkeys(trial.evaluated_params)
    shown = list(params)[:_MAX_PARAMS]
    ordered = sorted(trials, key=lambda trial: _ORDER.index(trial.status))
    if metrics and mode:
        ordered.sort(key=lambda trial: _rank(trial, metrics[0], mode))
    rows = []
    for trial in ordered:
        result = trial.last_result
        values = flat_params(trial.config)
        rows.append([
            str(trial), trial.status, *(cell(values.get(name, trial.evaluated_params.get(name))) for name in shown),
            cell(result.get("training_iteration")), cell(_seconds(result.get("time_total_s"))), *(cell(lookup(result, name)) for name in metrics),
        ])  # fmt: skip
    return ["trial", "status", *shown, "iter", "time_s", *metrics], rows


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _rank(trial: Trial, metric: str, mode: str) -> float:
    value = lookup(trial.last_result, metric)
    if not isinstance(value, int | float) or value != value:
        return float("inf")
    return -float(value) if mode == "max" else float(value)


class Reporter:
    """Prints.

    Args:
        name: of the experiment.
        folder: its place.
        metric, mode: what is shown; None: nothing but the iterations.
        verbose: 0: nothing; 1: the state from time to time and a table in the end; 2: also each trial's end; 3: also each report.
        out: where to; default: standard output.
    """

    def __init__(self, name: str, folder: str, metric: str | None, mode: str | None, verbose: int = 1, out: TextIO | None = None) -> None:
        self.name, self.folder, self.metric, self.mode, self.verbose = name, folder, metric, mode, verbose
        self.out = out or sys.stdout
        self.live = verbose > 0 and self.out.isatty()
        self._due: float | None = None
        self._drawn = 0
        self._metrics = [metric] if metric else []
        self._began: float | None = None
        self._changed = True

    def next_at(self) -> float | None:
        """When `turn` wants to be called at the latest."""
        return self._due if self.verbose and self._changed else None

    def say(self, text: str) -> None:
        """A line, above the table."""
        if self.verbose:
            self._erase()
            self._print(text)

    def told(self, tell: Tell) -> None:
        """Something happened to a trial."""
        self._changed = True
        trial = tell.trial
        if tell.hook in ("on_trial_error", "on_trial_recover"):
            last = trial.error_text.strip().splitlines() or [repr(trial.error)]
            self.say(f"{trial} failed{' and starts again' if tell.hook == 'on_trial_recover' else ''}: {last[-1]}")
        elif tell.hook == "on_trial_complete" and self.verbose >= 2:
            self.say(f"{trial} ended{self._metrics_of(trial)}")
        elif tell.hook == "on_trial_result" and self.verbose >= 3:
            self.say(f"{trial} reports{self._metrics_of(trial)}")

    def _metrics_of(self, trial: Trial) -> str:
        result = trial.last_result
        parts = [f"{name}={cell(lookup(result, name))}" for name in self._metrics if lookup(result, name) is not None]
        return f" at iteration {result.get('training_iteration', 0)}" + "".join(f", {part}" for part in parts)

    def begin(self, now: float) -> None:
        """Before anything runs."""
        self._began = now
        self._due = now + (_TERMINAL_EVERY_S if self.live else _LINES_EVERY_S)
        self.say(f"experiment {self.name} in {self.folder}")

    def turn(self, loop: TrialLoop, now: float) -> None:
        """After news; draws when it is time."""
        if not self.verbose:
            return
        if self._due is None or now < self._due or not self._changed:
            return
        self._due = now + (_TERMINAL_EVERY_S if self.live else _LINES_EVERY_S)
        self._changed = False
        if self.live:
            began = time.perf_counter()
            self._draw(loop, now)
            # Of ten thousand trials a table takes a while: never more than a small share of the time.
            self._due = now + max(_TERMINAL_EVERY_S, (time.perf_counter() - began) * 20)
        else:
            self._print(self._status(loop, now))

    def _status(self, loop: TrialLoop, now: float) -> str:
        trials = loop.get_trials()
        counts = Counter(trial.status for trial in trials)
        total = f" of {loop.total_samples}" if loop.total_samples >= 0 else ""
        shown = ", ".join(f"{counts[status]} {status.lower()}" for status in _ORDER if counts[status])
        best = self._best(trials)
        return f"{now - (self._began or now):.0f} s: {len(trials)}{total} trials: {shown or 'none yet'}{best}; {loop.scheduler.debug_string()}"

    def _best(self, trials: Sequence[Trial]) -> str:
        if not self.metric or not self.mode:
            return ""
        known = [trial for trial in trials if _rank(trial, self.metric, self.mode) != float("inf")]
        if not known:
            return ""
        best = min(known, key=lambda trial: _rank(trial, self.metric or "", self.mode or ""))
        return f"; best {self.metric}={cell(lookup(best.last_result, self.metric))} of {best}"

    def _draw(self, loop: TrialLoop, now: float) -> None:
        size = shutil.get_terminal_size()
        header, rows = trial_rows(loop.get_trials(), self._metrics)
        room = max(3, min(_MAX_ROWS, size.lines - 5))
        lines = [self._status(loop, now)[: size.columns], *render_table(header, rows[:room], size.columns)]
        if len(rows) > room:
            lines.append(f"… and {len(rows) - room} more")
        self._erase()
        self._print("\n".join(lines))
        self._drawn = len(lines)

    def _erase(self) -> None:
        if self._drawn:
            self._print(f"\x1b[{self._drawn}A\x1b[J", end="")
            self._drawn = 0

    def end(self, loop: TrialLoop) -> None:
        """The last table."""
        if not self.verbose:
            return
        self._erase()
        trials = loop.get_trials()
        header, rows = trial_rows(trials, self._metrics, self.mode)
        self._print("\n".join(render_table(header, rows[:_MAX_ROWS])))
        if len(rows) > _MAX_ROWS:
            self._print(f"… and {len(rows) - _MAX_ROWS} more")
        counts = Counter(trial.status for trial in trials)
        self._print(", ".join(f"{counts[status]} {status.lower()}" for status in _ORDER if counts[status]) + self._best(trials) + f"; in {self.folder}")

    def _print(self, text: str, end: str = "\n") -> None:
        print(text, end=end, file=self.out, flush=True)
