"""The table, on terminals and elsewhere."""

import io

from shoal import tune
from shoal.tune.execution.policy import LoopPolicy
from shoal.tune.reporter import Reporter, render_table, trial_rows
from shoal.tune.testing import Simulation


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def simulated(until: float = float("inf")) -> Simulation:
    simulation = Simulation(space={"x": tune.uniform(0, 1), "m": {"n": tune.choice([1, 2])}}, policy=LoopPolicy(num_samples=30), cpus=4, iterations=3)
    simulation.run(until)
    return simulation


def test_a_terminal_is_drawn_anew_and_not_too_often() -> None:
    out = Terminal()
    reporter = Reporter("e", "/e", "loss", "min", out=out)
    loop = simulated(5.5).loop
    reporter.begin(0.0)
    reporter.turn(loop, 0.1)
    assert out.getvalue() == "experiment e in /e\n" and reporter.next_at() == 0.5
    reporter.turn(loop, 0.6)
    first = out.getvalue()
    assert "trials: 4 running" in first and "best loss=" in first and "m/n" in first
    reporter._changed = True
    reporter.turn(loop, 1.2)
    lines = len(first.splitlines()) - 1
    assert f"\x1b[{lines}A\x1b[J" in out.getvalue()[len(first) :]


def test_elsewhere_there_are_plain_lines() -> None:
    out = io.StringIO()
    reporter = Reporter("e", "/e", "loss", "min", out=out)
    loop = simulated(5.5).loop
    reporter.begin(0.0)
    reporter.turn(loop, 10.0)
    reporter.turn(loop, 31.0)
    assert "\x1b" not in out.getvalue() and out.getvalue().count("\n") == 2


def test_the_last_table_has_the_best_first_and_a_limit() -> None:
    out = io.StringIO()
    reporter = Reporter("e", "/e", "loss", "min", out=out)
    loop = simulated().loop
    reporter.begin(0.0)
    reporter.end(loop)
    said = out.getvalue()
    assert "… and 10 more" in said and "30 terminated; best loss=" in said
    losses = [float(line.split()[-1]) for line in said.splitlines() if "TERMINATED" in line]
    assert losses == sorted(losses) and len(losses) == 20


def test_silence_is_silent() -> None:
    out = io.StringIO()
    reporter = Reporter("e", "/e", "loss", "min", verbose=0, out=out)
    loop = simulated().loop
    reporter.begin(0.0)
    reporter.turn(loop, 99.0)
    reporter.say("x")
    reporter.end(loop)
    assert out.getvalue() == "" and reporter.next_at() is None


def test_cells_are_cut_and_numbers_stand_on_the_right() -> None:
    header, rows = trial_rows(simulated().loop.get_trials(), ["loss"])
    lines = render_table(header, rows, width=60)
    assert all(len(line) <= 60 for line in lines) and header == ["trial", "status", "x", "m/n", "iter", "time_s", "loss"]
    assert render_table(["a"], []) == ["a"]
