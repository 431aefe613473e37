"""Rows as a table, JSON or YAML-like text."""

from __future__ import annotations

import json
from typing import Any

# Limit: of one column in a table.
_WIDTH = 48


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = json.dumps(value, separators=(", ", ": ")) if isinstance(value, (dict, list)) else str(value)
    text = text.replace("\n", " ")
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """
    >>> print(table([{"a": 1, "b": None}], ["a", "b"]))
    A  B
    1  -
    """
    cells = [[column.upper() for column in columns], *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells)


def tree(value: Any, indent: int = 0) -> str:
    """Nested values as YAML would show them.

    >>> print(tree({"a": 1, "b": ["x"]}))
    a: 1
    b:
      - x
    """
    pad = " " * indent
    if isinstance(value, dict):
        lines = []
        for key, inner in value.items():
            if isinstance(inner, (dict, list)) and inner:
                lines.append(f"{pad}{key}:\n{tree(inner, indent + 2)}")
            else:
                lines.append(f"{pad}{key}: {_scalar(inner)}")
        return "\n".join(lines)
    if isinstance(value, list):
        return "\n".join(f"{pad}- {tree(inner, indent + 2).lstrip() if isinstance(inner, (dict, list)) else _scalar(inner)}" for inner in value)
    return f"{pad}{_scalar(value)}"


def _scalar(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list)) or value is None or isinstance(value, bool) else str(value)


def size(count: float) -> str:
    """
    >>> size(1536), size(3 << 30)
    ('1.5 KiB', '3.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
