"""Single samples of gateways as messages, to values and back; what a caller may send is checked here. Knows no policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.router.decide import Boxes, Classes, OwnRule, Row
from services.router.wire import MAX_NAME, model_from, version_from
from splitmesh.api.routing.v1 import routing_pb2 as pb
from splitmesh.errors import field_error
from splitmesh.routing.costs import NO_ANSWER
from splitmesh.routing.gate import Verdict

MAX_NUMBERS = 100_000
"""Of one row, one vector of features, or one picture's boxes."""
MAX_SIZE_BYTES = 64 * 1024 * 1024
"""Of a sample on the link; twice what a frame may have."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about one sample."""

    policy: tuple[str, int] | None
    """Model and version whose policy decides; None: ``own`` does."""
    own: OwnRule | None
    said: Classes | Boxes
    camera: str
    site: str
    """Where it would cross; empty: the budget is not looked at."""
    application: str
    """Within the site."""
    size_bytes: int


def asked_from(message: pb.DecideRequest) -> Asked:
    """A question; FIELD_INVALID names what is missing or wrong."""
    policy = own = None
    match message.WhichOneof("rule"):
        case "policy":
            policy = (model_from(message.policy.model), version_from(message.policy.version))
        case "own":
            own = OwnRule(message.own.score, message.own.threshold, dict(message.own.parameters))
        case _:
            raise field_error("rule", "is missing: say which version's policy decides, or bring a rule of your own")
    for field, name in (("camera_id", message.camera_id), ("site", message.site), ("application", message.application)):
        if len(name) > MAX_NAME:
            raise field_error(field, f"has {len(name)} characters, at most {MAX_NAME} are allowed")
    if message.size_bytes > MAX_SIZE_BYTES:
        raise field_error("size_bytes", f"is {message.size_bytes}, at most {MAX_SIZE_BYTES} are allowed")
    application = message.application or (policy[0] if policy is not None else "")
    if message.site and not application:
        raise field_error(
            "application", "is missing: with a rule of its own nothing says whose share of the site it takes"
        )
    return Asked(policy, own, _said_from(message), message.camera_id, message.site, application, message.size_bytes)


def decided_to(verdict: Verdict, refused: str) -> pb.DecideResponse:
    """A verdict as a message, and why the sample may not cross (empty: it may)."""
    return pb.DecideResponse(
        escalate=not verdict.sure and not refused,
        hard=not verdict.sure,
        why=pb.RouteReason.Value(f"ROUTE_REASON_{verdict.why}"),
        ease=None if math.isnan(verdict.ease) else verdict.ease,
        threshold=verdict.threshold,
        worth=verdict.worth,
        refused=refused,
        label=None if verdict.answer == NO_ANSWER else verdict.answer,
    )


def _said_from(message: pb.DecideRequest) -> Classes | Boxes:
    match message.WhichOneof("scores"):
        case "classes":
            said = message.classes
            return Classes(
                _row("classes.probabilities", said.probabilities)[None],
                _row("classes.logits", said.logits)[None] if said.logits else None,
                _row("classes.features", said.features)[None] if said.features else None,
            )
        case "boxes":
            return Boxes(_row("boxes.scores", message.boxes.scores))
        case _:
            raise field_error("scores", "are missing: send a classifier's row or a detector's boxes")


def _row(field: str, numbers: Sequence[float]) -> Row:
    if len(numbers) > MAX_NUMBERS:
        raise field_error(field, f"has {len(numbers)} numbers; at most {MAX_NUMBERS} are taken")
    return np.asarray(numbers, dtype=np.float32)
