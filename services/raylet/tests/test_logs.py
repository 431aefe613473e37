"""Workers' files: lines go out under the name that their marks give, and marks are never shown."""

from __future__ import annotations

import asyncio

import pytest
from shoal_base.output_marks import mark
from shoal_raylet.logs import LogTail, read_log, tail_offset

pytestmark = pytest.mark.timeout(30)
WORKER = b"w" * 16
TEXT = b"early\n" + mark("f") + b"f1\nf2\n" + mark("g") + b"g1\n" + mark("Counter") + b"c1\nc2"


def test_lines_of_one_read_go_out_under_the_names_that_printed_them(tmp_path):
    async def delivered():
        out = []
        tail = LogTail(tmp_path, lambda *row: out.append(row), 1 << 20)
        tail.add(WORKER)
        (tmp_path / f"worker-{WORKER.hex()}.out").write_bytes(TEXT)
        tail.finish(WORKER)
        tail.close()
        return out

    rows = asyncio.run(delivered())
    assert [(name, lines) for _worker, _err, name, lines in rows] == [
        ("", ["early"]),
        ("f", ["f1", "f2"]),
        ("g", ["g1"]),
        ("Counter", ["c1"]),
        ("Counter", ["c2"]),
    ]


@pytest.mark.parametrize(
    ("lines", "shown"), [(-1, b"early\nf1\nf2\ng1\nc1\nc2"), (2, b"c1\nc2"), (3, b"g1\nc1\nc2"), (5, b"f1\nf2\ng1\nc1\nc2"), (99, b"early\nf1\nf2\ng1\nc1\nc2")]
)
@pytest.mark.parametrize("chunk", [5, 16, 1 << 18])
def test_readers_of_a_file_see_no_marks_and_do_not_count_them(tmp_path, monkeypatch, lines, shown, chunk):
    monkeypatch.setattr("shoal_raylet.logs._CHUNK_BYTES", chunk)
    path = tmp_path / "worker.out"
    path.write_bytes(TEXT)

    async def read():
        return b"".join([data async for data in read_log(path, lines, follow=False)])

    assert asyncio.run(read()) == shown
    assert tail_offset(path, 0) == len(TEXT)


def test_files_of_dead_workers_are_kept_by_count_and_by_age(tmp_path):
    async def ended():
        tail = LogTail(tmp_path, lambda *row: None, 1 << 20, kept=3, kept_s=3600.0)
        try:
            for n in range(5):
                worker = bytes([n]) * 16
                tail.add(worker)
                (tmp_path / f"worker-{worker.hex()}.out").write_text("said\n")
                (tmp_path / f"worker-{worker.hex()}.out.1").write_text("earlier\n")
                (tmp_path / f"worker-{worker.hex()}.err").write_text("")
                tail.finish(worker)
            by_count = sorted(path.name for path in tmp_path.iterdir())
            tail._kept_s = 0.0
            await asyncio.sleep(0)
            tail.forget()
            return by_count, list(tmp_path.iterdir())
        finally:
            tail.close()

    by_count, by_age = asyncio.run(ended())
    assert by_count == sorted(f"worker-{(bytes([n]) * 16).hex()}.out{part}" for n in (2, 3, 4) for part in ("", ".1"))
    assert by_age == []
