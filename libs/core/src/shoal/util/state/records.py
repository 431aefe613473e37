"""What the state API returns and raises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class RayStateApiException(Exception):
    """The question could not be answered, or not whole."""


class Record(Mapping[str, Any]):
    """One node, actor, task or the like: its fields are attributes and keys. Their names are those of `shoal list --detail`."""

    __slots__ = ("_fields", "_kind")

    def __init__(self, kind: str, fields: dict[str, Any]) -> None:
        self._kind = kind
        self._fields = fields

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._fields[name]
        except KeyError:
            raise AttributeError(f"a record of {self._kind} has no field {name!r}; its fields are {', '.join(sorted(self._fields))}") from None

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __reduce__(self) -> tuple[Any, ...]:
        return Record, (self._kind, self._fields)

    def __repr__(self) -> str:
        return f"{self._kind}({', '.join(f'{name}={value!r}' for name, value in self._fields.items())})"
