"""Label selectors: what a node's labels must be.

A selector maps keys to one condition each, all of which must hold:

    "v"  is v        "!v"  is not v (or absent)    "in(a,b)"  is one of these    "!in(a,b)"  is none of these (or absent)
    "exists()"  is there, whatever it is           "!exists()"  is absent

>>> parse_selector({"zone": "in(eu-1, eu-2)", "spot": "!true"}).matches({"zone": "eu-2"})
True
>>> parse_selector({"zone": "!exists()"}).matches({"zone": "eu-2"})
False
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

# A name, with an optional domain before it, as in Kubernetes.
_KEY = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_NAME_RULE = "up to 63 letters, digits, '-', '_', '.', and begins and ends with a letter or digit"
_KEY_RULE = f"a key has {_NAME_RULE}, after an optional 'domain/'"
_CALL = re.compile(r"(in|exists)\((.*)\)")


class Condition(msgspec.Struct, frozen=True):
    """`values` None: any value will do. `negated` turns the whole condition round."""

    key: str
    values: frozenset[str] | None
    negated: bool

    def holds(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        found = value is not None and (self.values is None or value in self.values)
        return found != self.negated

    def __str__(self) -> str:
        bang = "!" if self.negated else ""
        if self.values is None:
            return f"{self.key}={bang}exists()"
        if len(self.values) == 1:
            return f"{self.key}={bang}{next(iter(self.values))}"
        return f"{self.key}={bang}in({','.join(sorted(self.values))})"


class Selector(msgspec.Struct, frozen=True):
    conditions: tuple[Condition, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return not self.conditions or all(condition.holds(labels) for condition in self.conditions)

    def __bool__(self) -> bool:
        return bool(self.conditions)

    def __str__(self) -> str:
        return ", ".join(map(str, self.conditions))


ANY = Selector()


def parse_selector(selector: Mapping[str, str] | None) -> Selector:
    """Raises ValueError that names the key and the text.

    >>> parse_selector({"zone": "in()"})
    Traceback (most recent call last):
    ...
    ValueError: label_selector 'zone': 'in()' names no value; write in(a,b)
    """
    return Selector(tuple(_condition(key, text) for key, text in (selector or {}).items()))


def _condition(key: str, text: str) -> Condition:
    if not isinstance(key, str) or not isinstance(text, str):
        raise ValueError(f"label_selector {key!r}: {text!r}: keys and conditions are strings")
    if not _KEY.fullmatch(key):
        raise ValueError(f"label_selector {key!r}: no label can have this key; {_KEY_RULE}")
    negated = text.startswith("!")
    body = text[1:] if negated else text
    call = _CALL.fullmatch(body)
    if call is None:
        if not body or not _VALUE.fullmatch(body):
            raise ValueError(f"label_selector {key!r}: {text!r} is no condition; write v, !v, in(a,b), !in(a,b), exists() or !exists()")
        return Condition(key, frozenset([body]), negated)
    if call[1] == "exists":
        if call[2].strip():
            raise ValueError(f"label_selector {key!r}: {text!r}: exists() takes nothing")
        return Condition(key, None, negated)
    values = [value.strip() for value in call[2].split(",")]
    if values == [""]:
        raise ValueError(f"label_selector {key!r}: {text!r} names no value; write in(a,b)")
    for value in values:
        if not value or not _VALUE.fullmatch(value):
            raise ValueError(f"label_selector {key!r}: {text!r}: {value!r} can be no label's value")
    return Condition(key, frozenset(values), negated)


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """A node's own labels, checked. Raises ValueError that names the key and the value."""
    for key, value in labels.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise ValueError(f"label key {key!r}: {_KEY_RULE}")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise ValueError(f"label {key}={value!r}: a value has {_NAME_RULE}, or is empty")
    return dict(labels)
