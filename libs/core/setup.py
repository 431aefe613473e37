"""Builds the engine: every `shoal/_core/*.pyx` as C++17, against the arena's header of the installed shoal-objectstore."""

from __future__ import annotations

from pathlib import Path

import shoal_objectstore
from Cython.Build import cythonize
from setuptools import Extension, setup

CORE = Path("src/shoal/_core")
HEADERS = Path(shoal_objectstore.get_include())

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
setup(ext_modules=cythonize(extensions, include_path=["src"], language_level=3))
