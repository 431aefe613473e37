"""Builds the contract's stubs from proto/ into src/, for wheels, sdists and editable installs alike."""

import importlib.resources
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


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


setup(cmdclass={"build_py": BuildStubs})
