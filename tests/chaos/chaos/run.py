"""One run: machines, a workload, a schedule of faults; then whether every promise was kept, and a table of how long noticing and recovering took."""

from __future__ import annotations

import contextlib
import json
import re
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .faults import FAULTS, ON_ALL, Fault, Skipped
from .machines import HOME, Machines, wait_until
from .program import Program
from .schedule import Event

NOTICED_S = 60.0
PROBE_S = 150.0
REST_S = 30.0
STOP_S = 330.0
GONE_S = 15.0
# Enough to see what is wrong.
MAX_FAILURES = 3
_POLL_S = 0.02


class Prober:
    def __init__(self, machines: Machines) -> None:
        self._numbers = 0
        self._answers: dict[str, dict[str, Any]] = {}
        self._came = threading.Condition()
        self._program = Program(machines, HOME, "probe", [machines.gcs_address], self._on_row)

    def _on_row(self, row: dict[str, Any]) -> None:
        with self._came:
            self._answers[row["id"]] = row
            self._came.notify_all()

    def ask(self, *words: str) -> str:
        with self._came:
            self._numbers += 1
            number = str(self._numbers)
            self._program.tell(" ".join([number, *words]))
        return number

    def has_answer(self, number: str) -> bool:
        with self._came:
            return number in self._answers

    def at(self, number: str, bound_s: float = PROBE_S) -> float:
        """When it succeeded (monotonic). Raises TimeoutError."""
        with self._came:
            if not self._came.wait_for(lambda: number in self._answers, bound_s):
                raise TimeoutError(f"a probe was not answered within {bound_s:g} s")
            row = self._answers.pop(number)
        if row["error"]:
            raise TimeoutError(f"a probe never succeeded: {row['error']}")
        return float(row["at"])

    def end(self, bound_s: float = 30.0) -> None:
        self._program.end(bound_s)


@dataclass
class Outcome:
    """Of one fault: seconds from its beginning, but `recovered_s` of one that lasted and cost no node: from its end."""

    event: Event
    began: float
    ended: float = 0.0
    noticed_s: float | None = None
    recovered_s: float | None = None
    skipped: str = ""
    failure: str = ""


@dataclass
class Report:
    seed: int
    outcomes: list[Outcome] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def fail(self, text: str) -> None:
        self.failures.append(text)

    def table(self) -> str:
        """As in docs/recovery.md."""
        lines = ["| fault | times | noticed, s: median, worst | work goes on, s: median, worst |", "| --- | --- | --- | --- |"]
        for name in FAULTS:
            mine = [one for one in self.outcomes if one.event.kind == name and not one.skipped]
            if mine:
                noticed = _spread([one.noticed_s for one in mine if one.noticed_s is not None])
                recovered = _spread([one.recovered_s for one in mine if one.recovered_s is not None])
                lines.append(f"| {name} | {len(mine)} | {noticed} | {recovered} |")
        return "\n".join(lines)

    def summary(self) -> str:
        kinds: dict[str, list[float]] = {}
        for row in self.rounds:
            kinds.setdefault(row["round"], []).append(row["took"])
        rounds = ", ".join(f"{len(took)} {name} (worst {max(took):.1f} s)" for name, took in sorted(kinds.items()))
        refused = sum(bool(row["refused"]) for row in self.rounds)
        done = [one for one in self.outcomes if not one.skipped]
        return f"{len(done)} faults; {len(self.rounds)} rounds of work, {refused} refused while a disk was full: {rounds}"


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f}, {max(values):.2f}" if values else "-"


class Run:
    """`briefly`: a node is lost only until that was noticed and its work has gone on. `threads`, `pause_s`: the workload's, and between its rounds."""

    def __init__(self, machines: Machines, seed: int, say: Callable[[str], None], *, briefly: bool = False, threads: int = 2, pause_s: float = 0.0) -> None:
        self.machines = machines
        self.report = Report(seed)
        self._briefly = briefly
        self._say = say
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._machine_locks = {number: threading.Lock() for number in machines.all}
        self._full: list[tuple[float, float]] = []  # when a disk was
        self.ledgers = machines.base / "ledgers"
        self.ledgers.mkdir()
        self.prober = Prober(machines)
        self.workload = Program(machines, HOME, "workload", [str(seed), str(self.ledgers), machines.gcs_address, str(threads), str(pause_s)], self._on_round)

    # -- the workload ----------------------------------------------------------------------------------

    def _on_round(self, row: dict[str, Any]) -> None:
        if "stopped" in row:
            if row["stopped"]:
                self.report.fail(f"rounds that never end, in {row['stopped']}")
            self._stopped.set()
            return
        with self._lock:
            self.report.rounds.append(row)
            if row["error"]:
                self._say(f"WRONG in round {row['round']}:\n{row['error']}")
                self._say(self._why(row["error"]))
                self.report.fail(f"round {row['round']} (took {row['took']:.1f} s): {row['error'].strip().splitlines()[-1]}")
            elif row["refused"] and not _overlaps(row, self._full):
                self.report.fail(f"round {row['round']} was refused room while no disk was full: {row['refused']}")

    def _why(self, error: str) -> str:
        """What the cluster says of an object that did not come."""
        found = re.search(r"GetTimeoutError: .*not ready after [^:]*: (\w+)", error)
        if found is None:
            return ""
        try:
            return json.dumps(self.machines.ask(f"v0/why/{found[1]}"), indent=1)
        except OSError as failed:
            return f"nobody says why: {failed}"

    # -- faults ------------------------------------------------------------------------------------------

    def play(self, events: list[Event], *, one_at_a_time: bool = False) -> None:
        """All of them, each on a thread of its own when its time has come; returns when everything that was lost is back."""
        start = time.monotonic()
        threads: list[threading.Thread] = []
        for event in events:
            while (left := start + event.at_s - time.monotonic()) > 0 and not self.given_up():
                time.sleep(min(left, 0.5))
            if self.given_up():
                break
            if one_at_a_time:
                self.one(event)
                continue
            thread = threading.Thread(target=self.one, args=(event,), daemon=True)
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()

    def given_up(self) -> bool:
        """So much is wrong that there is no more to be learned."""
        if self.workload.process.poll() is not None and not self._stopped.is_set():
            self.report.fail(f"the workload ended with {self.workload.process.returncode}: {self.workload.words()}")
            return True
        return len(self.report.failures) >= MAX_FAILURES

    def one(self, event: Event) -> Outcome:
        outcome = Outcome(event, time.monotonic())
        try:
            with contextlib.ExitStack() as mine:
                # A fault may begin later than planned, or take longer: the next one on that machine waits.
                for number in self.machines.victims if event.kind in ON_ALL else [event.machine]:
                    mine.enter_context(self._machine_locks[number])
                self._do(event, outcome)
        except Skipped as why:
            outcome.skipped = str(why)
        except Exception as error:
            outcome.failure = f"{event}: {type(error).__name__}: {error}"
            self.report.fail(outcome.failure)
        with self._lock:
            self.report.outcomes.append(outcome)
            self._say(_told(outcome))
        return outcome

    def _do(self, event: Event, outcome: Outcome) -> None:
        machines = self.machines
        kind = FAULTS[event.kind]
        if kind.loses_node:
            wait_until(lambda: machines.node_id(event.machine), f"a node on machine {event.machine} to break", pause_s=0.1)
        fault = kind(machines, event)
        try:
            self._play_one(fault, outcome)
        finally:
            fault.close()

    def _play_one(self, fault: Fault, outcome: Outcome) -> None:
        event = outcome.event
        fault.prepare()
        probe = self._begun_there(fault) if fault.loses_node and fault.probe == "task" else ""
        outcome.began = time.monotonic()
        fault.begin()
        if event.kind == "disk full":
            self._full.append((outcome.began, outcome.began + event.lasts_s + REST_S))
        if fault.recovers_at_once and not probe:
            probe = self.prober.ask(*fault.question())
        at: float | None = None
        if self._briefly and fault.loses_node:
            self._watch(fault, outcome, outcome.began + NOTICED_S, until_noticed=True)
            at = self.prober.at(probe)
        else:
            self._watch(fault, outcome, outcome.began + event.lasts_s)
        fault.end()
        outcome.ended = time.monotonic()
        since = outcome.began if probe else outcome.ended
        if not probe:
            probe = self.prober.ask(*fault.question())
        if not self._watch(fault, outcome, time.monotonic() + NOTICED_S, until_noticed=True):
            raise TimeoutError(f"nobody noticed within {NOTICED_S:g} s")
        if fault.loses_node:
            self._bring_back(fault.number)
        at = self.prober.at(probe) if at is None else at
        if fault.began is not None:
            outcome.noticed_s = (outcome.noticed_s or 0.0) - (fault.began - outcome.began)
            since = fault.began
        outcome.recovered_s = max(0.0, at - since)
        fault.check()

    def _begun_there(self, fault: Fault) -> str:
        """A task runs on the node that is to be lost; its end elsewhere is the recovery."""
        file = self.machines.base / f"moved-{fault.event.number}"
        probe = ""

        def begun() -> bool:
            """It is sent elsewhere, and ends there, while the home machine has not yet heard of a node that is new."""
            nonlocal probe
            if not probe or self.prober.has_answer(probe):
                probe = self.prober.ask("elsewhere", fault.node_id, str(file))
            return file.exists()

        wait_until(begun, f"a task to begin on machine {fault.event.machine}")
        return probe

    def _watch(self, fault: Fault, outcome: Outcome, until: float, until_noticed: bool = False) -> bool:
        """Notes when the fault is noticed. False: it must be, and the time is up."""
        while outcome.noticed_s is None:
            found = fault.noticed()
            if found is None and until_noticed:
                return True
            if found:
                outcome.noticed_s = time.monotonic() - outcome.began
            elif (left := until - time.monotonic()) <= 0:
                return not until_noticed
            else:
                time.sleep(min(left, _POLL_S) if found is not None else left)
        if not until_noticed:
            time.sleep(max(0.0, until - time.monotonic()))
        return True

    def _bring_back(self, number: int) -> None:
        """A node that was fenced may have ended its supervisor, as an operator's init system would see."""
        machines = self.machines
        machine = machines.all[number]

        def back() -> bool:
            if machine.launched is None or machine.launched.process.poll() is not None:
                machine.kill_all()
                machines.start(number)
            return bool(machines.node_id(number))

        wait_until(back, f"machine {number} to be back", pause_s=0.2)

    # -- the end -----------------------------------------------------------------------------------------

    def finish(self, post_mortem: Callable[[], None] = lambda: None) -> Report:
        """The workload ends, and nothing may be left of it; then the nodes end, and nothing may be left of them.

        `post_mortem` is called before the nodes end, if something has failed.
        """
        report = self.report
        try:
            self._finish_work()
        except (TimeoutError, OSError) as error:
            report.fail(str(error))
        if report.failures:
            post_mortem()
        self.machines.stop()
        try:
            wait_until(lambda: not self.machines.left(), "processes, sockets and files to go", GONE_S)
        except TimeoutError as error:
            report.fail(f"{error}; there still are: {self.machines.left()}")
        return report

    def _finish_work(self) -> None:
        wait_until(self.machines.is_whole, "every machine's node to be counted again", pause_s=0.2)
        self.workload.tell("stop")
        if not self._stopped.wait(STOP_S):
            self.report.fail(f"the workload's last rounds did not end within {STOP_S:g} s")
        try:
            wait_until(lambda: not self.machines.unrest(), "everything to be given back after the last round", REST_S, pause_s=0.2)
        except TimeoutError as error:
            self.report.fail(f"{error}; there still are: {self.machines.unrest()}")
        self.workload.tell("end")
        status = self.workload.end()
        if status != 0:
            self.report.fail(f"the workload ended with {status}: {self.workload.words()}")
        self.prober.end()

    def close(self) -> None:
        """After an exception too."""
        self.prober.end(1.0)
        self.workload.end(1.0)


def _overlaps(row: dict[str, Any], spans: list[tuple[float, float]]) -> bool:
    return any(start <= row["began"] + row["took"] and row["began"] <= end for start, end in spans)


def _told(outcome: Outcome) -> str:
    if outcome.skipped:
        return f"{outcome.event}: skipped, {outcome.skipped}"
    if outcome.failure:
        return f"FAILED {outcome.failure}"
    noticed = f"noticed after {outcome.noticed_s:.2f} s, " if outcome.noticed_s is not None else ""
    return f"{outcome.event}: {noticed}work goes on after {outcome.recovered_s or 0.0:.2f} s"


def keep(machines: Machines, report: Report, place: Path) -> Path:
    """What a post-mortem needs; where it is."""
    machines.keep_logs(place)
    for file in machines.base.glob("*.err"):
        (place / file.name).write_bytes(file.read_bytes())
    for file in machines.base.glob("ledgers/*"):
        (place / file.name).write_bytes(file.read_bytes())
    (place / "report.json").write_text(json.dumps({"failures": report.failures, "rounds": report.rounds}, indent=1))
    return place
