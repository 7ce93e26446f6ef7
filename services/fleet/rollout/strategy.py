"""How a version is brought to hosts, read from a request: defaults filled in, nonsense refused; and hosts divided into waves.

Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration

from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.errors import field_error
from splitmesh.routing.paired_test import PairedTest

DEFAULT_TIMEOUT_S = 600.0
DEFAULT_PARALLEL = 500
MAX_PARALLEL = 100_000
MAX_WAVES = 100
MAX_TIME_S = 366 * 86400.0
_US = 1_000_000
_FULL_MODEL = serving_pb2.TRIAL_REFERENCE_FULL_MODEL


@dataclass(frozen=True, slots=True)
class Gate:
    """How it is decided whether the version is as good as the one before it."""

    test: PairedTest
    shadow_pairs: int
    canary_share: float
    pair_share: float
    max_pairs: int
    reference: serving_pb2.TrialReference.ValueType
    max_time_us: int
    """0: no limit."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """See the contract."""

    wave_percents: tuple[int, ...] = (100,)
    gate: Gate | None = None
    max_failed_share: float = 0.0
    host_timeout_us: int = int(DEFAULT_TIMEOUT_S * _US)
    pause_us: int = 0
    require_tail: bool = False
    max_parallel: int = DEFAULT_PARALLEL
    alias: str = ""


def read_strategy(message: fleet_pb2.Strategy) -> Strategy:
    """FIELD_INVALID names the field."""
    timeout = _time_us("strategy.host_timeout", message.host_timeout) if message.HasField("host_timeout") else 0
    return Strategy(
        wave_percents=_percents(message.wave_percents),
        gate=_gate(message.gate) if message.HasField("gate") else None,
        max_failed_share=_share("strategy.max_failed_share", message.max_failed_share),
        host_timeout_us=timeout or int(DEFAULT_TIMEOUT_S * _US),
        pause_us=_time_us("strategy.pause", message.pause),
        require_tail=message.require_tail,
        max_parallel=_at_most("strategy.max_parallel", message.max_parallel, MAX_PARALLEL) or DEFAULT_PARALLEL,
        alias=message.alias,
    )


def divide(nodes: Sequence[str], percents: Sequence[int]) -> dict[str, int]:
    """The wave of each host, from 1, in the order given; the first has one host at least, and none is empty.

    A wave for which there are no hosts left is left out, so there may be fewer than percentages.
    """
    waves: dict[str, int] = {}
    wave, begin = 0, 0
    for percent in percents:
        end = max(1, len(nodes) * percent // 100)
        if end > begin:
            wave += 1
            waves |= dict.fromkeys(nodes[begin:end], wave)
            begin = end
    return waves


def _gate(message: fleet_pb2.Gate) -> Gate:
    field = "strategy.gate."
    for name in ("margin", "alpha"):
        value = getattr(message, name)
        if not 0 <= value < 1:
            raise field_error(field + name, f"is {value}, expected a number from 0 (the default) to below 1")
    if message.reference not in serving_pb2.TrialReference.values():
        raise field_error(field + "reference", f"is {message.reference}, which is none that this fleet knows")
    shadow_pairs, max_pairs = message.shadow_pairs or 100, message.max_pairs or 20_000
    if max_pairs < 2 * shadow_pairs:
        raise field_error(
            field + "max_pairs", f"is {max_pairs}, less than the shadow's and the canary's {shadow_pairs} each"
        )
    return Gate(
        test=PairedTest(message.margin or 0.02, message.alpha or 0.05),
        shadow_pairs=shadow_pairs,
        canary_share=_share(field + "canary_share", message.canary_share) or 0.1,
        pair_share=_share(field + "pair_share", message.pair_share) or 0.1,
        max_pairs=max_pairs,
        reference=message.reference or _FULL_MODEL,
        max_time_us=_time_us(field + "max_time", message.max_time),
    )


def _percents(found: Sequence[int]) -> tuple[int, ...]:
    if not found:
        return (100,)
    if len(found) > MAX_WAVES:
        raise field_error("strategy.wave_percents", f"has {len(found)} waves, at most {MAX_WAVES} are allowed")
    grows = all(before < after for before, after in zip((0, *found), found, strict=False))
    if not grows or found[-1] != 100:
        raise field_error(
            "strategy.wave_percents", f"is {list(found)}, expected growing numbers from 1, the last one 100"
        )
    return tuple(found)


def _share(field: str, value: float) -> float:
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise field_error(field, f"is {value}, expected a number from 0 to 1")
    return value


def _at_most(field: str, value: int, most: int) -> int:
    if value > most:
        raise field_error(field, f"is {value}, at most {most} is allowed")
    return value


def _time_us(field: str, message: Duration) -> int:
    seconds = message.seconds + message.nanos / 1e9
    if not 0 <= seconds <= MAX_TIME_S:
        raise field_error(field, f"is {seconds:g} s, expected 0 to {MAX_TIME_S:g} s")
    return round(seconds * _US)
