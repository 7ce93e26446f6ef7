"""What can be wrong with a host policy. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter

from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.errors import field_error

MAX_SHARES = 256
"""Models that one policy names."""
MAX_PRIORITY = 9
MAX_WEIGHT = 1e6
MAX_NUMBER = 2**63 - 1

_MODEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def check_policy(policy: serving_pb2.HostPolicy) -> None:
    """FIELD_INVALID for the first field that is wrong."""
    if len(policy.shares) > MAX_SHARES:
        raise field_error("policy.shares", f"has {len(policy.shares)}, at most {MAX_SHARES} are kept")
    _check_bytes("policy.memory_bytes", policy.memory_bytes)
    for index, share in enumerate(policy.shares):
        where = f"policy.shares[{index}]"
        if not _MODEL.fullmatch(share.model):
            raise field_error(f"{where}.model", f"{share.model!r} is no name of a model")
        if share.priority > MAX_PRIORITY:
            raise field_error(f"{where}.priority", f"is {share.priority}, expected 0 to {MAX_PRIORITY}")
        if not (math.isfinite(share.cpu_weight) and 0 <= share.cpu_weight <= MAX_WEIGHT):
            raise field_error(f"{where}.cpu_weight", f"is {share.cpu_weight}, expected 0 to {MAX_WEIGHT:g}")
        _check_bytes(f"{where}.memory_bytes", share.memory_bytes)
    for model, times in Counter(share.model for share in policy.shares).items():
        if times > 1:
            raise field_error("policy.shares", f"name {model!r} {times} times")


def _check_bytes(field: str, number: int) -> None:
    if number > MAX_NUMBER:
        raise field_error(field, f"is {number}, at most {MAX_NUMBER}")
