"""The native part alone: other compilers' languages, a stress program under sanitizers, and Python's extension under AddressSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import shoal_objectstore
from shoal_objectstore import get_include

pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")]
STRESS = Path(__file__).with_name("stress.c")


def build(out: Path, source: Path, *flags: str, compiler: str = "cc") -> None:
    done = subprocess.run([compiler, *flags, "-pthread", f"-I{get_include()}", str(source), "-o", str(out)], capture_output=True, text=True, check=False)
    if done.returncode and "sanitize" in " ".join(flags) and ("libtsan" in done.stderr or "libasan" in done.stderr):
        pytest.skip("this compiler has no such sanitizer")
    assert not done.returncode, done.stderr


@pytest.mark.parametrize(("compiler", "language"), [("cc", "c11"), ("cc", "gnu17"), ("c++", "c++17"), ("c++", "gnu++20")])
@pytest.mark.parametrize("header", ["shoal_arena.h", "shoal_arena_units.h", "shoal_arena_store.h", "shoal_checksum.h", "shoal_copy.h"])
def test_the_headers_compile_without_a_warning(tmp_path: Path, compiler: str, language: str, header: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    source = tmp_path / ("main.cc" if compiler == "c++" else "main.c")
    bodies = {"shoal_checksum.h": "return (int)shoal_crc32c(0, 0, 0);", "shoal_copy.h": "return shoal_buffer_begin(0, 1, 0, 1) != shoal_buffer_end(0, 64);"}
    body = bodies.get(header, "shoal_arena_t* a = 0; return a != 0;")
    source.write_text(f'#include "{header}"\nint main(void) {{ {body} }}\n')
    build(tmp_path / "main", source, f"-std={language}", "-Wall", "-Wextra", "-Werror", "-O2", compiler=compiler)


@pytest.mark.parametrize(
    ("flags", "rounds"),
    [
        (("-O2",), 30_000),
        (("-O2", "-DSHOAL_SMALL_COST_NS=0"), 10_000),
        (("-O1", "-g", "-fsanitize=address,undefined"), 10_000),
        (("-O1", "-g", "-fsanitize=thread", "-Wno-tsan", "-DSHOAL_ARENA_ONE_MAPPING"), 5_000),
    ],
    ids=["plain", "small pages", "address", "thread"],
)
def test_clients_as_threads_with_a_lender_that_takes_everything_it_may(tmp_path: Path, flags: tuple[str, ...], rounds: int) -> None:
    build(tmp_path / "stress", STRESS, "-std=gnu11", "-Wall", *flags)
    done = subprocess.run([tmp_path / "stress", str(rounds), "1"], capture_output=True, text=True, timeout=250, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def sanitized_package(place: Path) -> Path:
    """The installed package, but for its extension: that is built anew, under AddressSanitizer, from what Cython made of it for the installed one."""
    installed = Path(shoal_objectstore.__file__).parent
    source = installed / "_arena.c"
    if not source.exists():
        pytest.skip("installed from a wheel: there is no source of the extension")
    package = place / "shoal_objectstore"
    package.mkdir()
    for path in installed.iterdir():
        if not path.name.startswith("_arena.cpython"):
            (package / path.name).symlink_to(path)
    headers = sysconfig.get_paths()["include"]
    flags = ("-O1", "-g", "-shared", "-fPIC", "-fsanitize=address", "-fno-omit-frame-pointer", "-DSHOAL_ARENA_CRASH_POINTS=1", f"-I{headers}")
    build(package / f"_arena{sysconfig.get_config_var('EXT_SUFFIX')}", source, *flags)
    return place


# A selection that is quick under the sanitizer: they read and write to the ends of extents, die and fork, and see memory given back while others put.
UNDER_THE_SANITIZER = ("test_arena.py", "test_checksum.py", "test_store_deaths.py")
NOT_ALL = "not churn and not at_a_point or 31 or 34"


@pytest.mark.timeout(900)
def test_the_extension_touches_only_what_is_its_own(tmp_path: Path) -> None:
    library = subprocess.run(["cc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(library):
        pytest.skip("this compiler has no AddressSanitizer")
    place = sanitized_package(tmp_path)
    environment = os.environ | {
        "PYTHONPATH": str(place), "LD_PRELOAD": library, "SHOAL_CHURN": "3000", "SHOAL_EXAMPLES": "8", "SHOAL_STORE_DEATHS": "4",
        "ASAN_OPTIONS": "detect_leaks=0",
    }  # fmt: skip

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=environment, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=800, check=False)

    assert run("-c", "import shoal_objectstore._arena as a; print(a.__file__)").stdout.startswith(str(place)), "the sanitized one is what is tested"
    done = run("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", NOT_ALL, *UNDER_THE_SANITIZER)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
