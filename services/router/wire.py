"""Messages of the routing API to values and back: names, goals, policies. What a caller may send is checked here.

Knows no store. Reports are ``report_wire.py``'s, single samples ``decide_wire.py``'s.
"""

from __future__ import annotations

import re
from dataclasses import asdict

from services.router.goals import ClassLimit, Goals
from services.router.policy import Policy
from splitmesh.api.routing.v1 import routing_pb2 as pb
from splitmesh.errors import field_error

MAX_NAME = 128

_MODEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def model_from(name: str) -> str:
    """A model's name; FIELD_INVALID when it cannot be one."""
    if not _MODEL.fullmatch(name):
        raise field_error("model", f"{name[:80]!r} is no model's name: a-z, 0-9, '.', '_', '-', at most 64 characters")
    return name


def version_from(version: int) -> int:
    """A version's number; FIELD_INVALID for 0."""
    if version < 1:
        raise field_error("version", "is 0; versions count from 1")
    return version


def name_from(field: str, value: str) -> str:
    """A node's name or a boot's id; FIELD_INVALID when empty or too long."""
    if not 1 <= len(value) <= MAX_NAME:
        raise field_error(field, f"has {len(value)} characters, expected 1..{MAX_NAME}")
    return value


def goals_from(message: pb.Goals, default: Goals) -> Goals:
    """Goals, what is left out as in ``default``; FIELD_INVALID names what is wrong."""
    return Goals(
        max_disagreement=message.max_disagreement,
        delta=message.delta or default.delta,
        audit_share=message.audit_share if message.HasField("audit_share") else default.audit_share,
        classes=tuple(ClassLimit(limit.label, limit.max_missed, limit.max_false_alarms) for limit in message.classes),
        score=message.score,
        parameters=dict(message.parameters),
        costs=tuple(message.costs),
        escalate_unusual=message.escalate_unusual if message.HasField("escalate_unusual") else None,
    )


def goals_to(goals: Goals) -> pb.Goals:
    """Goals as a message."""
    return pb.Goals(
        max_disagreement=goals.max_disagreement,
        delta=goals.delta,
        classes=[
            pb.ClassLimit(label=limit.label, max_missed=limit.max_missed, max_false_alarms=limit.max_false_alarms)
            for limit in goals.classes
        ],
        score=goals.score,
        parameters=goals.parameters,
        costs=goals.costs,
        audit_share=goals.audit_share,
        escalate_unusual=goals.escalate_unusual,
    )


def policy_to(policy: Policy) -> pb.Policy:
    """A policy as a message."""
    return pb.Policy(**asdict(policy))
