"""Goals as a person writes them on a command line: ``NG=0.01`` and ``NG:OK=100``, on top of what is in force. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from splitmesh.client.routing import ClassLimit
from splitmesh.errors import field_error

NONE = "none"
"""Takes a table of costs back."""


def numbers_of(option: str, given: Sequence[str]) -> dict[str, float]:
    """``NAME=NUMBER`` each; a name may hold an equals sign. FIELD_INVALID names the option and what is wrong."""
    found: dict[str, float] = {}
    for text in given:
        name, equals, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            equals = ""
        if not (name and equals):
            raise field_error(option, f"{text!r} is not NAME=NUMBER")
        if name in found:
            raise field_error(option, f"names {name!r} twice")
        found[name] = value
    return found


def limits_of(
    known: Sequence[ClassLimit], missed: Sequence[str], false_alarms: Sequence[str]
) -> tuple[ClassLimit, ...]:
    """Limits in force with others put in their place: ``NG=0.01``, ``NG=0`` for none any more."""
    limits = {limit.label: limit for limit in known}
    for label, share in numbers_of("max_missed", missed).items():
        limits[label] = replace(limits.get(label, ClassLimit(label)), max_missed=share)
    for label, share in numbers_of("max_false_alarms", false_alarms).items():
        limits[label] = replace(limits.get(label, ClassLimit(label)), max_false_alarms=share)
    return tuple(limit for limit in limits.values() if limit.max_missed or limit.max_false_alarms)


def costs_of(labels: Sequence[str], given: Sequence[str]) -> tuple[float, ...]:
    """``TRUE:SAID=COST`` each, every other mistake 1: ``classes * classes``, row by row. FIELD_INVALID for what names no pair.

    ``labels``: the exit's classes, in their order; they may hold colons.
    """
    if not labels:
        raise field_error("cost", "needs classes that have names; this model has none")
    table = [[float(true != said) for said in labels] for true in labels]
    for pair, cost in numbers_of("cost", given).items():
        true, said = _pair(labels, pair)
        table[true][said] = cost
    return tuple(cost for row in table for cost in row)


def _pair(labels: Sequence[str], pair: str) -> tuple[int, int]:
    """By position, the first reading of TRUE:SAID that names two different classes."""
    for at in (at for at, letter in enumerate(pair) if letter == ":"):
        true, said = pair[:at], pair[at + 1 :]
        if true in labels and said in labels and true != said:
            return labels.index(true), labels.index(said)
    raise field_error("cost", f"{pair!r} is not TRUE:SAID of two of the classes {', '.join(labels)}")
