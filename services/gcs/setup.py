"""Generates the contract's stubs from proto/ into src/ before the modules are collected; everything else is in pyproject.toml."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


class BuildWithStubs(build_py):
    def run(self) -> None:
        generate_stubs()
        super().run()


def generate_stubs() -> None:
    from grpc_tools import protoc

    protos = sorted(str(path) for path in (HERE / "proto").rglob("*.proto"))
    out = HERE / "src"
    arguments = ["protoc", f"-I{HERE / 'proto'}", f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}", *protos]
    if protoc.main(arguments) != 0:
        raise SystemExit(f"protoc failed on {', '.join(protos)}")


setup(cmdclass={"build_py": BuildWithStubs})
