"""Workers' lines at the driver."""

from __future__ import annotations

from types import SimpleNamespace

from shoal._logs import WINDOW_S, Deduplicator, LogPrinter, dedup_wanted, prefix


def batch(*lines, pid=1, name="f", is_err=False, ip="127.0.0.1"):
    return SimpleNamespace(node_id=b"n", pid=pid, name=name, is_err=is_err, node_ip=ip, lines=list(lines))


def test_a_prefix_names_the_task_the_process_and_another_host():
    assert prefix(batch(), "127.0.0.1", colour=False) == "(f pid=1)"
    assert prefix(batch(name="", ip="10.0.0.5"), "127.0.0.1", colour=False) == "(pid=1, ip=10.0.0.5)"
    assert prefix(batch(), "", colour=True).startswith("\033[36m(f pid=1")


def test_a_process_may_repeat_itself():
    dedup = Deduplicator()
    assert dedup.add(batch("a", "a", "a 1", "a 2"), 0.0) == ["a", "a", "a 1", "a 2"]
    assert dedup.flush() == []


def test_what_others_say_again_is_counted_and_told_at_the_end_of_the_window():
    dedup = Deduplicator()
    assert dedup.add(batch("epoch 1"), 0.0) == ["epoch 1"]
    assert dedup.add(batch("epoch 2", pid=2), 1.0) == []
    assert dedup.add(batch("epoch 3", pid=3), 2.0) == []
    assert dedup.next_due() == WINDOW_S
    assert dedup.due(WINDOW_S - 0.1) == []
    ((told, line),) = dedup.due(WINDOW_S)
    assert told.pid == 3
    assert line.startswith("epoch 3 [repeated 2x across cluster]")
    assert dedup.add(batch("epoch 4", pid=2), WINDOW_S + 1) == ["epoch 4"]


def test_what_was_said_twice_is_shown_as_it_was():
    dedup = Deduplicator()
    dedup.add(batch("x"), 0.0)
    dedup.add(batch("x", pid=2), 1.0)
    assert [line for _, line in dedup.flush()] == ["x"]


def test_empty_lines_are_never_counted():
    dedup = Deduplicator()
    assert dedup.add(batch("", " "), 0.0) == ["", " "]
    assert dedup.add(batch("", " ", pid=2), 0.0) == ["", " "]


def test_the_patterns_remembered_have_a_limit():
    dedup = Deduplicator()
    for i in range(3000):
        dedup.add(batch("x" * i + "-"), 0.0)
    assert len(dedup._patterns) <= 1000


def test_lines_go_to_the_stream_they_were_written_to_and_none_after_the_end(capsys):
    printer = LogPrinter("127.0.0.1", dedup=True, now=lambda: 0.0)
    printer.on_batch(batch("out"))
    printer.on_batch(batch("err", is_err=True))
    printer.on_batch(batch("out", pid=2))
    printer.close()
    printer.on_batch(batch("late"))
    captured = capsys.readouterr()
    assert captured.out == "(f pid=1) out\n(f pid=2) out\n"
    assert captured.err == "(f pid=1) err\n"


def test_deduplication_can_be_switched_off(monkeypatch, capsys):
    assert dedup_wanted()
    monkeypatch.setenv("RAY_DEDUP_LOGS", "0")
    assert not dedup_wanted()
    monkeypatch.setenv("RAY_DEDUP_LOGS", "1")
    monkeypatch.setenv("SHOAL_DEDUP_LOGS", "0")
    printer = LogPrinter()
    printer.on_batch(batch("x"))
    printer.on_batch(batch("x", pid=2))
    assert capsys.readouterr().out.count("x\n") == 2
