"""What no store is asked to keep: text that PostgreSQL or UTF-8 refuses, numbers that do not fit. Knows no store.

Every store checks its arguments here, so that one database's data always fits into another's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

from splitmesh.errors import field_error

_INT64 = 2**63


def check_fields(**values: object) -> None:
    """FIELD_INVALID for the first value, or part of one, that cannot be kept; named as ``draft.lineage.seeds[2]``."""
    for name, value in values.items():
        _check(name, value)


def _check(name: str, value: object) -> None:
    if isinstance(value, str):
        _check_text(name, value)
    elif isinstance(value, int):
        if not -_INT64 <= value < _INT64:
            raise field_error(name, "does not fit in 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise field_error(name, "is not a finite number")
    elif isinstance(value, tuple | list):
        for index, one in enumerate(value):
            _check(f"{name}[{index}]", one)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            _check(f"a name in {name}", key)
            _check(f"{name}[{key!r}]", one)
    elif is_dataclass(value):
        for field in fields(value):
            _check(f"{name}.{field.name}", getattr(value, field.name))


def _check_text(name: str, text: str) -> None:
    if text.isascii():
        if "\0" in text:
            raise field_error(name, "contains a NUL character")
        return
    if "\0" in text:
        raise field_error(name, "contains a NUL character")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise field_error(name, "contains half of a surrogate pair")
