"""Runs the uv of this environment as pip is configured: its indexes, links, certificate and hosts. uv reads none of pip's settings by itself.

.venv/bin/python scripts/uv.py pip install ...
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

# pip's option -> uv's variable, and what stands between several values there.
_LISTS = {"find-links": ("UV_FIND_LINKS", ","), "extra-index-url": ("UV_INDEX", " "), "trusted-host": ("UV_INSECURE_HOST", " ")}
_SINGLE = {"index-url": "UV_DEFAULT_INDEX", "cert": "SSL_CERT_FILE", "proxy": "ALL_PROXY"}


def pip_settings() -> dict[str, str]:
    """What `pip install` would use: environment over the command's section over the global one, as pip has it."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True, timeout=60).stdout
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listed.splitlines():
        name, equals, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if equals and section in found:
            found[section][option] = str(ast.literal_eval(value))
    return found["global"] | found["install"] | found[":env:"]


def environment() -> dict[str, str]:
    """This process's, plus what pip's settings say. A variable of uv's own that is set already wins."""
    settings, env = pip_settings(), dict(os.environ)
    for option, (variable, between) in _LISTS.items():
        values = settings.get(option, "").split()
        if values:
            env.setdefault(variable, between.join(values))
    for option, variable in _SINGLE.items():
        if settings.get(option):
            env.setdefault(variable, settings[option])
    if settings.get("extra-index-url"):
        # pip takes the best version from all indexes; uv by itself stops at the first that knows the name.
        env.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        env.setdefault("UV_NO_INDEX", "1")
    if settings.get("default-timeout", settings.get("timeout")):
        env.setdefault("UV_HTTP_TIMEOUT", settings.get("default-timeout", settings.get("timeout", "")))
    # As pip does: where PYTHONDONTWRITEBYTECODE is set, every process would compile everything again, and start three times as slowly.
    env.setdefault("UV_COMPILE_BYTECODE", "1")
    return env


if __name__ == "__main__":
    uv = str(Path(sys.executable).parent / "uv")
    env, arguments = environment(), sys.argv[1:]
    # A --find-links on the command line replaces the variable: pip adds the two.
    if "--find-links" in arguments:
        arguments += [part for place in env.pop("UV_FIND_LINKS", "").split(",") if place for part in ("--find-links", place)]
    os.execve(uv, [uv, *arguments], env)
