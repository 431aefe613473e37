"""Builds the contract's stubs from proto/ into src/, and the arena's extension, for wheels, sdists and editable installs alike."""

import importlib.resources
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
SOURCE = "src/shoal_objectstore"


class BuildStubs(build_py):
    def run(self) -> None:
        self.generate()
        super().run()

    def generate(self) -> None:
        from grpc_tools import protoc

        include = str(importlib.resources.files("grpc_tools") / "_proto")
        for proto in sorted((HERE / "proto").rglob("*.proto")):
            arguments = ["protoc", f"-I{HERE / 'proto'}", f"-I{include}"]
            arguments += [f"--{kind}_out={HERE / 'src'}" for kind in ("python", "pyi", "grpc_python")]
            if protoc.main([*arguments, str(proto)]):
                # No Exception: of an editable installation, setuptools would hide it and leave the old stubs.
                raise SystemExit(f"protoc failed for {proto}")


arena = Extension(
    "shoal_objectstore._arena",
    [f"{SOURCE}/_arena.pyx"],
    include_dirs=[f"{SOURCE}/include"],
    depends=[f"{SOURCE}/include/shoal_{name}.h" for name in ("arena", "arena_store", "arena_units", "checksum", "copy")],
    # A point costs one comparison here; the core's engine is built without them.
    define_macros=[("SHOAL_ARENA_CRASH_POINTS", "1")],
    extra_compile_args=["-O2", "-g0", "-pthread"],
)
setup(cmdclass={"build_py": BuildStubs}, ext_modules=cythonize([arena], include_path=["src"]))
