"""Builds the engine: every `shoal/_core/*.pyx` as C++17, against the arena's header of the installed shoal-objectstore."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import shoal_objectstore
from Cython.Build import cythonize
from setuptools import Extension, setup

CORE = Path("src/shoal/_core")
HEADERS = Path(shoal_objectstore.get_include())
# The compiler's words for code that takes the GIL, or copies, where it need not.
HINT = "performance hint:"


class Heard(io.StringIO):
    """What is written to standard error, which it reaches as well."""

    def write(self, text: str) -> int:
        sys.__stderr__.write(text)
        return super().write(text)


def translate(extensions: list[Extension]) -> list[Extension]:
    """Cython to C++. Hints are errors: Cython has no switch for that."""
    with contextlib.redirect_stderr(Heard()) as heard:
        modules = cythonize(extensions, include_path=["src"], language_level=3, compiler_directives={"show_performance_hints": True})
    if HINT in heard.getvalue():
        for extension in extensions:
            # Else the next build would find them up to date, and say nothing.
            Path(extension.sources[0]).with_suffix(".cpp").unlink(missing_ok=True)
        raise SystemExit("The engine takes the GIL, or copies, where it need not: see the performance hints above. They are errors in this build.")
    return modules


# setuptools runs this file with the package's folder as the current one.
sources = sorted(CORE.glob("*.pyx"))
headers = sorted(str(path) for path in (*CORE.glob("*.h"), *HEADERS.glob("*.h")))
extensions = [
    Extension(
        f"shoal._core.{source.stem}",
        [str(source)],
        language="c++",
        include_dirs=[str(CORE), str(HEADERS)],
        depends=headers,
        extra_compile_args=["-std=c++17", "-O2", "-g0", "-pthread", "-fvisibility=hidden", "-Wno-unused-function"],
        extra_link_args=["-pthread"],
    )
    for source in sources
]
setup(ext_modules=translate(extensions))
