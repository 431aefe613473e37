"""The native part alone: other compilers' languages, and a stress program under sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from shoal_objectstore import get_include

pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")]
STRESS = Path(__file__).with_name("stress.c")


def build(out: Path, source: Path, *flags: str, compiler: str = "cc") -> None:
    done = subprocess.run([compiler, *flags, "-pthread", f"-I{get_include()}", str(source), "-o", str(out)], capture_output=True, text=True, check=False)
    if done.returncode and "sanitize" in " ".join(flags) and ("libtsan" in done.stderr or "libasan" in done.stderr):
        pytest.skip("this compiler has no such sanitizer")
    assert not done.returncode, done.stderr


@pytest.mark.parametrize(("compiler", "language"), [("cc", "c11"), ("cc", "gnu17"), ("c++", "c++17"), ("c++", "gnu++20")])
@pytest.mark.parametrize("header", ["shoal_arena.h", "shoal_arena_store.h", "shoal_checksum.h"])
def test_the_headers_compile_without_a_warning(tmp_path: Path, compiler: str, language: str, header: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    source = tmp_path / ("main.cc" if compiler == "c++" else "main.c")
    body = "return (int)shoal_crc32c(0, 0, 0);" if "checksum" in header else "shoal_arena_t* a = 0; return a != 0;"
    source.write_text(f'#include "{header}"\nint main(void) {{ {body} }}\n')
    build(tmp_path / "main", source, f"-std={language}", "-Wall", "-Wextra", "-Werror", "-O2", compiler=compiler)


@pytest.mark.parametrize(
    ("flags", "rounds"),
    [
        (("-O2",), 30_000),
        (("-O1", "-g", "-fsanitize=address,undefined"), 10_000),
        (("-O1", "-g", "-fsanitize=thread", "-Wno-tsan", "-DSHOAL_ARENA_ONE_MAPPING"), 5_000),
    ],
    ids=["plain", "address", "thread"],
)
def test_clients_as_threads_with_a_lender_that_takes_everything_it_may(tmp_path: Path, flags: tuple[str, ...], rounds: int) -> None:
    build(tmp_path / "stress", STRESS, "-std=gnu11", "-Wall", *flags)
    done = subprocess.run([tmp_path / "stress", str(rounds), "1"], capture_output=True, text=True, timeout=250, check=False)
    assert (done.returncode, done.stderr) == (0, "")
