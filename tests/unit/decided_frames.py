"""Frames that passed an exit, as the head tells its observers of them, and a link to tails that answers when it is told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np

from edge.head.active import ActiveModel
from edge.head.decided import Decided, TailSaid
from edge.head.frame import FrameAnswer, FrameRequest, Picture
from edge.head.perceive import Perceived
from splitmesh.api.routing.v1 import routing_pb2
from splitmesh.client.answers import Routing
from splitmesh.client.registry import VersionInfo
from splitmesh.client.segment import SegmentLink, SegmentResult
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import HEAD, MANIFEST, Manifest
from splitmesh.routing.gate import Verdict, Why
from splitmesh.runtime import open_session
from splitmesh.tensor import Frame
from splitmesh.tensor.spec import Array
from tests.support.models import CUT, EASY, EXIT_OUTPUT, exit_version, features, picture

TRACE_CONTEXT = bytes(range(1, 25)) + b"\x01"


@dataclass
class Asked:
    """One frame that was sent to a tail."""

    frame: Frame
    trace_context: bytes
    deadline_s: float
    answer: asyncio.Future[dict[str, Array]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def says(self, label: int) -> None:
        """Answer with a class."""
        self.answer.set_result({"logits": np.eye(3, dtype=np.float32)[label : label + 1] * 9})


class Link:
    """Stands for :class:`SegmentLink`."""

    def __init__(self) -> None:
        self.available = True
        self.backlog_ms = 0.0
        self.label: int | None = None
        """Answered at once, where it is set."""
        self.asked: asyncio.Queue[Asked] = asyncio.Queue()
        self.sent = 0

    async def run(self, frame: Frame, *, trace_context: bytes, deadline_s: float) -> SegmentResult:
        """As the link's."""
        asked = Asked(frame, trace_context, deadline_s)
        self.sent += 1
        if self.label is not None:
            asked.says(self.label)
        self.asked.put_nowait(asked)
        return SegmentResult(await asked.answer, "tail", 0.0, 1.0, 1, 1.0)

    def require(self) -> None:
        """As the link's."""
        if not self.available:
            raise MeshError(Reason.SERVICE_UNAVAILABLE, "no tail")

    def load(self) -> routing_pb2.UplinkLoad:
        """As the link's."""
        return routing_pb2.UplinkLoad(backlog_ms=self.backlog_ms, tails=1)

    async def stop(self) -> None:
        """Nothing to close."""


def loaded(link: Link | None = None, *, version: int = 1) -> ActiveModel:
    """A version with an exit."""
    artifacts = exit_version()
    info = VersionInfo("parts", version, 0, {}, "push", "", (), datetime(2026, 1, 1, tzinfo=UTC))
    manifest = Manifest.from_json(artifacts[MANIFEST])
    return ActiveModel(info, manifest, open_session(artifacts[HEAD]), cast(SegmentLink | None, link))


def decided(active: ActiveModel, frame_id: int = 1, **differing: Any) -> Decided:
    """A bright or dark picture that an exit decided on.

    ``differing`` from a sure frame: ``camera``, ``label`` (the exit's class), ``ease``, ``why``, ``unusual``, ``tail``,
    ``arrived``, ``audited``, ``refused``, ``complete``, ``row``, ``exit``.
    """
    given = {"camera": "line-1", "label": 0, "ease": 0.99, "why": Why.SURE, "unusual": None, "tail": None, **differing}
    why = Why(given["why"])
    request = FrameRequest(Picture(picture(EASY)), camera_id=given["camera"], frame_id=frame_id)
    verdict = Verdict(why is Why.SURE, why, given["ease"], 0.9, 0.01, given["label"], given["unusual"])
    row = np.asarray(given.get("row", np.eye(3)[given["label"]]), np.float32)[None]
    complete = given.get("complete", True)
    outputs: dict[str, Array] = {EXIT_OUTPUT: row}
    if complete:
        outputs[CUT] = features(EASY)
    seen = Perceived(
        outputs, row, given.get("exit", 0), verdict, None, None, 0, 0, 0, 0, complete=complete, score="max_probability"
    )
    routing = Routing(
        why,
        "max_probability",
        given["ease"],
        0.9,
        0.01,
        refused=given.get("refused", ""),
        audited=given.get("audited", False),
    )
    answer = FrameAnswer(frame_id, active, f"{frame_id:032x}", routing=routing, trace_context=TRACE_CONTEXT)
    arrived = given.get("arrived") or datetime.now(UTC)
    return Decided(request, active, seen, verdict, answer, arrived, cast(TailSaid | None, given["tail"]))
