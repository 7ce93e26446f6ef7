"""Options that several commands of the fleet share, and what they mean: which hosts, how long, how much."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated

import typer

from splitmesh.client.fleet_nodes import AppShare, Target
from splitmesh.errors import field_error

NodeOption = Annotated[list[str] | None, typer.Option("--node", help="This host; may be given several times.")]
SiteOption = Annotated[list[str] | None, typer.Option("--site", help="Hosts of this site; may be given several times.")]
LineOption = Annotated[
    list[str] | None, typer.Option("--line", help="Hosts of this production line; may be given several times.")
]
GroupOption = Annotated[
    list[str] | None, typer.Option("--group", help="Hosts of this group of cameras; may be given several times.")
]
LabelOption = Annotated[
    list[str] | None, typer.Option("--label", help="Hosts with this label, key=value; given several times: with all.")
]
AllOption = Annotated[bool, typer.Option("--all", help="Every host.")]

DAYS = 86_400.0
_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": DAYS}
_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_MOST_BYTES = 2**50
_NUMBER = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[A-Za-z]*)")


def named_target(
    nodes: Sequence[str] | None,
    sites: Sequence[str] | None,
    lines: Sequence[str] | None,
    groups: Sequence[str] | None,
    labels: Sequence[str] | None,
    every: bool = False,
) -> Target | None:
    """What the options name; None where none was given. MeshError FIELD_INVALID for a label that is none."""
    target = Target(
        tuple(nodes or ()), tuple(sites or ()), tuple(lines or ()), tuple(groups or ()), labels_of(labels), every
    )
    return target if target != Target() else None


def required_target(target: Target | None) -> Target:
    """The target. MeshError FIELD_INVALID where nothing was named, or every host and some of them."""
    if target is None:
        raise field_error("target", "say which hosts: --node, --site, --line, --group, --label, or --all")
    if target.every and target != Target(every=True):
        raise field_error("target", "--all means every host: leave the other ones out")
    return target


def labels_of(texts: Sequence[str] | None, *, removable: bool = False) -> dict[str, str]:
    """``key=value`` each. MeshError FIELD_INVALID for anything else; an empty value only where it takes a label away."""
    found: dict[str, str] = {}
    for text in texts or ():
        key, sign, value = text.partition("=")
        if not key or not sign or not (value or removable):
            raise field_error("label", f"{text!r} is not key=value, such as camera=basler")
        if key in found:
            raise field_error("label", f"{key!r} is given twice")
        found[key] = value
    return found


def seconds(field: str, text: str) -> float:
    """``60s``, ``5m``, ``1.5h`` or ``2d`` in seconds; a number alone is seconds. MeshError FIELD_INVALID."""
    found = _NUMBER.fullmatch(text.strip())
    if found is None or found["unit"].lower() not in _SECONDS:
        raise field_error(field, f"{text!r} is no time such as 60s, 5m or 1.5h")
    value = float(found["number"]) * _SECONDS[found["unit"].lower()]
    if value > 365 * DAYS:
        raise field_error(field, f"{text!r} is more than a year")
    return value


def size_bytes(field: str, text: str) -> int:
    """``512MiB``, ``4GiB`` or ``500MB`` in bytes; a number alone is bytes. MeshError FIELD_INVALID."""
    found = _NUMBER.fullmatch(text.strip())
    if found is None or found["unit"].upper() not in _BYTES:
        raise field_error(field, f"{text!r} is no size such as 512MiB or 4GiB")
    value = float(found["number"]) * _BYTES[found["unit"].upper()]
    if value > _MOST_BYTES:
        raise field_error(field, f"{text!r} is more than a host can have")
    return int(value)


def app_share(text: str) -> AppShare:
    """``joints=priority:5,cpu:2,memory:512MiB``; each part may be left out. MeshError FIELD_INVALID for anything else."""
    model, sign, rest = text.partition("=")
    parts: dict[str, str] = {}
    for part in rest.split(",") if rest else []:
        key, colon, value = (one.strip() for one in part.partition(":"))
        if key not in ("priority", "cpu", "memory") or not colon or key in parts:
            raise _no_share(text)
        parts[key] = value
    if not model.strip() or (sign and not parts):
        raise _no_share(text)
    priority = parts.get("priority", "0")
    if not priority.isdecimal() or int(priority) > 9:
        raise field_error("app", f"priority {priority!r} is not 0 to 9")
    try:
        weight = float(parts.get("cpu", "0"))
    except ValueError:
        raise _no_share(text) from None
    if not math.isfinite(weight) or weight < 0 or ("cpu" in parts and weight == 0):
        raise field_error("app", f"cpu {parts['cpu']!r} is not a weight greater than 0")
    return AppShare(model.strip(), int(priority), weight, size_bytes("app", parts.get("memory", "0")))


def above_0(value: float) -> float:
    """The number. A mistake for 0, which on the wire means the fleet's own number and not what was typed."""
    if not value > 0:
        raise typer.BadParameter(f"{value:g} is not greater than 0")
    return value


def percents(text: str) -> tuple[int, ...]:
    """``5,25,100``; what the last wave leaves out is a wave of its own. MeshError FIELD_INVALID for anything else."""
    if not text.strip():
        return ()
    parts = [part.strip().removesuffix("%").strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= 100 for part in parts):
        raise field_error("waves", f"{text!r} is not growing percents such as 5,25,100")
    found = [int(part) for part in parts]
    if found != sorted(set(found)):
        raise field_error("waves", f"{text!r} does not grow")
    return tuple(found if found[-1] == 100 else [*found, 100])


def _no_share(text: str) -> Exception:
    example = "joints=priority:5,cpu:2,memory:512MiB"
    return field_error("app", f"{text!r} does not say what an application may use, as {example} does")
