"""An answerer with real sessions and everything around it played: a tail, a budget, audits, counts, observers. No network."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
import onnx
from onnx import TensorProto, helper

from edge.head.active import ActiveModel
from edge.head.answer import Answerer
from edge.head.config import HeadSettings
from edge.head.decided import Decided, Observer, TailSaid
from edge.head.frame import FrameAnswer, FrameRequest, Picture
from edge.head.trial.trial import Trial
from edge.head.ways import Way, Ways
from splitmesh.client.link_estimate import LinkEstimator
from splitmesh.client.registry import VersionInfo
from splitmesh.client.segment_result import SegmentResult
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.telemetry import Telemetry
from splitmesh.model.alternatives import Alternative
from splitmesh.model.manifest import HEAD, MANIFEST, TAIL, WHOLE, Manifest
from splitmesh.routing.gate import Gate
from splitmesh.runtime import open_session
from splitmesh.tensor import Frame, unpack
from tests.support.models import exit_version, picture, split_version, whole_version

CLOUD_MS = 1.5
EXIT_FEATURES = "exit_features"


class Tail:
    """Stands for :class:`splitmesh.client.segment.SegmentLink`: computes here, or fails."""

    def __init__(self) -> None:
        self.available = True
        self.fails: MeshError | None = None
        self.batch = 1
        self.frames: list[Frame] = []
        self._session = open_session(split_version()[TAIL])

    async def run(self, frame: Frame, *, trace_context: bytes, deadline_s: float) -> SegmentResult:
        """As the link's."""
        assert deadline_s > 0
        self.frames.append(frame)
        if self.fails is not None:
            raise self.fails
        names = [spec.name for spec in frame.header.tensors]
        outputs = self._session.run(dict(zip(names, unpack(frame), strict=True)))
        return SegmentResult(outputs, "tail-1", 0.5, CLOUD_MS, self.batch, 5.0)

    def require(self) -> None:
        """As the link's."""
        if not self.available:
            raise MeshError(Reason.SERVICE_UNAVAILABLE, "no tail has accepted this version")

    async def stop(self) -> None:
        """As the link's."""
        self._session.close()


@dataclass
class PlayedBudget:
    """Stands for :class:`edge.head.uplink.budget.Budget`."""

    refusal: str = ""
    room: bool = True
    asked: list[tuple[str, float, int]] = field(default_factory=list)
    crossings: list[tuple[str, float]] = field(default_factory=list)
    spared: list[tuple[str, int]] = field(default_factory=list)

    def refuses(self, model: str, worth: float, size_bytes: int, *, left_s: float) -> str:
        """As the budget's."""
        self.asked.append((model, worth, size_bytes))
        return self.refusal

    def crossed(self, model: str, *, cloud_ms: float) -> None:
        """As the budget's."""
        self.crossings.append((model, cloud_ms))

    def spare(self, model: str, size_bytes: int) -> bool:
        """As the budget's."""
        self.spared.append((model, size_bytes))
        return self.room


@dataclass
class PlayedAudits:
    """Stands for :class:`edge.head.audits.Audits`."""

    chooses: bool = False
    shown: list[Decided] = field(default_factory=list)

    def take(self, frame: Decided) -> bool:
        """As the audits'."""
        self.shown.append(frame)
        return self.chooses


class Counts:
    """Stands for :class:`edge.head.report.Outcomes`."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        def count(version: VersionInfo, *reason: Reason, **facts: bool) -> None:
            self.of[" ".join([name, *reason, *(fact for fact, holds in facts.items() if holds)])] += 1

        return count


@dataclass
class Watcher:
    """An observer."""

    raises: Exception | None = None
    told: list[Decided] = field(default_factory=list)
    total_ms: list[float] = field(default_factory=list)

    def decided(self, frame: Decided) -> None:
        """Remembered, and how much of the answer was there by then."""
        self.told.append(frame)
        self.total_ms.append(frame.answer.times.total_ms)
        if self.raises is not None:
            raise self.raises

    def audited(self, frame: Decided, tail: TailSaid) -> None:
        """Remembered."""
        self.told.append(frame)
        if self.raises is not None:
            raise self.raises


class PlayedModels:
    """Stands for :class:`edge.head.models.Models`: one model."""

    def __init__(self, ways: Ways) -> None:
        self._ways = ways
        self.tried: Trial | None = None

    def ways(self, model: str) -> Ways:
        """The only ones."""
        return self._ways

    def trial(self, model: str) -> Trial | None:
        """What the test tries."""
        return self.tried


@dataclass
class Head:
    """What a test looks at and turns."""

    answerer: Answerer
    active: ActiveModel
    ways: Ways
    tail: Tail
    budget: PlayedBudget
    audits: PlayedAudits
    counts: Counts
    watchers: list[Watcher]
    models: PlayedModels

    async def infer(self, brightness: float, **about: Any) -> FrameAnswer:
        """The answer to a grey picture."""
        return await self.answerer.answer(FrameRequest(Picture(picture(brightness)), **about))


def features_version() -> dict[str, bytes]:
    """``exit_version`` whose head gives what the exit reads as well: brightness and half of it."""
    artifacts = exit_version()
    head = onnx.load_model_from_string(artifacts[HEAD])
    head.graph.node.append(helper.make_node("Identity", ["exit/flat"], [EXIT_FEATURES]))
    head.graph.output.append(helper.make_tensor_value_info(EXIT_FEATURES, TensorProto.FLOAT, ["batch", 2]))
    manifest = Manifest.from_json(artifacts[MANIFEST]).model_dump(exclude_none=True)
    manifest["exit"]["features"] = EXIT_FEATURES
    outputs = manifest["split"]["head"]["outputs"]
    manifest["split"]["head"]["outputs"] = [*outputs, {"name": EXIT_FEATURES, "dtype": "float32", "shape": (-1, 2)}]
    text = Manifest.model_validate(manifest).to_json().encode()
    return artifacts | {HEAD: head.SerializeToString(), MANIFEST: text}


def loaded(artifacts: dict[str, bytes], part: str, *, link: Tail | None = None, version: int = 1) -> ActiveModel:
    """One version, or the whole model."""
    info = VersionInfo("parts", version, 0, {}, "push", "", (), datetime(2026, 1, 1, tzinfo=UTC))
    manifest = Manifest.from_json(artifacts[MANIFEST])
    return ActiveModel(info, manifest, open_session(artifacts[part]), cast(Any, link))


@asynccontextmanager
async def head(
    artifacts: dict[str, bytes] | None = None,
    gate: Gate | None = None,
    *,
    whole: bool = False,
    watchers: Sequence[Watcher] = (),
    **settings: Any,
) -> AsyncIterator[Head]:
    """An answerer of one version, ``exit_version`` unless it is given; with ``whole`` the whole model is a way too."""
    tail, budget, audits, counts = Tail(), PlayedBudget(), PlayedAudits(), Counts()
    active = loaded(artifacts or exit_version(), HEAD, link=tail)
    active.gate = gate or Gate(0.9)
    active.policy_revision = 3
    ways = Ways.only(active)
    if whole:
        cut = Way(active, Alternative(version=0, name="cut", edge_ms=0.1, uplink_bytes=8000, cloud_ms=0.1, share=1.0))
        edge_only = Way(loaded(whole_version(), WHOLE, version=2), Alternative(version=2, name="edge", edge_ms=5.0))
        ways = Ways([cut, edge_only], LinkEstimator(1e4, 10.0))
    seen = list(watchers) or [Watcher()]
    models = PlayedModels(ways)
    answerer = Answerer(
        cast(Any, models),
        HeadSettings(default_deadline_ms=5000, **settings),
        Telemetry("test"),
        cast(Any, counts),
        budget=cast(Any, budget),
        audits=cast(Any, audits),
        observers=cast(Sequence[Observer], seen),
    )
    await answerer.start()
    try:
        yield Head(answerer, active, ways, tail, budget, audits, counts, seen, models)
    finally:
        await answerer.stop()
        await ways.retire()


def spoil_exit(active: ActiveModel, row: Sequence[float]) -> None:
    """From now on the exit's probabilities are these, whatever the picture."""
    session, exit_ = active.session, active.manifest.exit
    assert exit_ is not None

    class _Spoilt:
        def __getattr__(self, name: str) -> Any:
            return getattr(session, name)

        def run(self, feeds: Any) -> Any:
            return session.run(feeds) | {exit_.output: np.array([row], np.float32)}

    active.session = cast(Any, _Spoilt())
