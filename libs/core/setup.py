"""Builds the core worker's extensions; everything else is in pyproject.toml.

They are compiled against the arena's C header, which the object store's package ships. In the repository it lies beside this package; elsewhere
the installed package says where it is.
"""

from __future__ import annotations

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

HERE = Path(__file__).resolve().parent


def arena_headers() -> str:
    beside = HERE.parents[1] / "services/objectstore/src/shoal_objectstore/include"
    if (beside / "shoal_arena.h").exists():
        return str(beside)
    try:
        import shoal_objectstore
    except ImportError as error:
        raise SystemExit("shoal-core is compiled against shoal-objectstore's headers: install shoal-objectstore first and build without isolation") from error
    return str(shoal_objectstore.get_include())


sources = sorted(path.relative_to(HERE) for path in (HERE / "src/shoal/_core").glob("*.pyx"))
headers = [str(path) for path in (HERE / "src/shoal/_core").glob("*.h")] + [str(path) for path in Path(arena_headers()).glob("*.h")]
extensions = [
    Extension(
        f"shoal._core.{path.stem}",
        [str(path)],
        language="c++",
        include_dirs=["src/shoal/_core", arena_headers()],
        depends=headers,
        extra_compile_args=["-std=c++17", "-O2", "-g0", "-pthread"],
    )
    for path in sources
]
setup(ext_modules=cythonize(extensions, include_path=["src"], language_level=3))
