"""Holds the libraries to the public API: import-linter sees only one of the distributions that share the namespace `shoal`, so this reads the imports.

A library imports of `shoal` only what has no underscore in its path, of other libraries only what UPWARDS allows, of services nothing.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# library -> the libraries whose public names it may use
UPWARDS: dict[str, set[str]] = {"data": set(), "train": set(), "tune": {"train"}, "serve": set(), "rl": {"tune", "train"}}
PRIVATE_ROOTS = {"shoal_base", "shoal_gcs", "shoal_raylet", "shoal_objectstore"}


def imported(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything that is imported, anywhere in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def complaint(name: str, library: str) -> str | None:
    root, *path = name.split(".")
    if root in PRIVATE_ROOTS:
        return f"{name} is of the services; libraries build on the public names of shoal"
    if root != "shoal" or path[:1] == [library]:
        return None
    if any(part.startswith("_") and not part.startswith("__") for part in path):
        return f"{name} is private; what libraries need beyond the user API belongs into shoal.ext"
    if path and path[0] in UPWARDS and path[0] not in UPWARDS[library]:
        return f"shoal.{library} may not know of shoal.{path[0]}"
    return None


def main() -> int:
    found = []
    for library in UPWARDS:
        source = ROOT / "libs" / library / "src"
        for file in sorted(source.rglob("*.py")):
            package = list(file.relative_to(source).parent.parts)
            for line, name in imported(ast.parse(file.read_text(), str(file)), package):
                if text := complaint(name, library):
                    found.append(f"{file.relative_to(ROOT)}:{line}: {text}")
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
