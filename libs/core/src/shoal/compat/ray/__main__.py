"""python -m shoal.compat.ray [--shadow] program.py …, or -m module …: runs a program written for Ray."""

from __future__ import annotations

import os
import runpy
import sys

from .alias import RayIsInstalled, install

_USAGE = "usage: python -m shoal.compat.ray [--shadow] (program.py | -m module) [arguments…]"


def main() -> None:
    arguments = sys.argv[1:]
    shadow = arguments[:1] == ["--shadow"]
    arguments = arguments[shadow:]
    if not arguments or arguments[0] in ("-h", "--help") or arguments == ["-m"]:
        print(f"{_USAGE}\n\nRuns a program written for Ray on Shoal: `import ray` imports Shoal.\n--shadow: also where Ray itself is installed.")
        sys.exit(0 if arguments[:1] in (["-h"], ["--help"]) else 2)
    try:
        install(shadow=shadow)
    except RayIsInstalled as error:
        sys.exit(f"shoal.compat.ray: {error}")
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    if not os.path.exists(arguments[0]):
        sys.exit(f"shoal.compat.ray: {arguments[0]}: no such file\n{_USAGE}")
    sys.argv = arguments
    sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()
