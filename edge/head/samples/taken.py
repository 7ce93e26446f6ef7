"""What is noted of a frame while it is answered, and the record that is made of it later: values, no store and no thread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from safetensors.numpy import save

from edge.head.decided import Decided, TailSaid
from edge.head.frame import Picture
from splitmesh.routing.costs import NO_ANSWER
from splitmesh.routing.finding import FINDINGS
from splitmesh.samples.record import MAX_TEXT, MAX_WORDS, Kind, SampleRecord, new_id
from splitmesh.tensor.spec import Array

_UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Taken:
    """One sample on its way to the disk. Holds nothing of the frame but what is its own."""

    camera: str
    arrived: datetime
    model: str
    version: int
    kind: Kind
    why: str
    score: str
    ease: float
    exit_label: str | None
    exit_confidence: float
    tail: TailSaid | None
    tail_label: str | None
    trace_id: str
    picture: bytes | None
    features: Mapping[str, Array]
    """By name, each of one sample."""
    size_bytes: int
    """Of picture and features."""

    def made(self, site: str, node: str, random: bytes) -> tuple[SampleRecord, bytes | None]:
        """The record, and the features as a safetensors file. MeshError FIELD_INVALID for what no record can hold."""
        record = SampleRecord(
            id=new_id(self.arrived, random),
            site=site,
            node=_words(node, MAX_TEXT),
            camera=_words(self.camera, MAX_TEXT),
            captured_at=self.arrived,
            model=self.model,
            version=self.version,
            kind=self.kind,
            why=self.why,
            score=self.score,
            ease=_share(self.ease),
            exit_label=self.exit_label,
            exit_confidence=None if self.exit_label is None else _share(self.exit_confidence),
            tail_label=self.tail_label,
            tail_confidence=None if self.tail is None else _share(self.tail.confidence),
            trace_id=self.trace_id,
        )
        tensors = {name: np.ascontiguousarray(array) for name, array in self.features.items()}
        return record, save(tensors) if tensors else None


def size_of(frame: Decided, *, features: bool) -> int:
    """Bytes that a frame's picture and features take."""
    content = frame.request.content
    size = content.size_bytes if isinstance(content, Picture) else 0
    return size + sum(array.nbytes for array in _features(frame, features).values())


def take(frame: Decided, tail: TailSaid | None, kind: Kind, why: str, size_bytes: int, *, features: bool) -> Taken:
    """What is to be kept of a frame; the picture is copied once, since its bytes are a message's."""
    content, verdict, active = frame.request.content, frame.verdict, frame.active
    names = _class_names(frame)
    return Taken(
        camera=frame.request.camera_id,
        arrived=frame.arrived,
        model=active.info.model,
        version=active.info.version,
        kind=kind,
        why=why,
        score=frame.seen.score,
        ease=verdict.ease,
        exit_label=None if verdict.answer == NO_ANSWER else _name(names, verdict.answer),
        exit_confidence=frame.answer.exit_confidence,
        tail=tail,
        tail_label=None if tail is None else _name(names, tail.label),
        trace_id=frame.answer.trace_id,
        picture=bytes(content.data) if isinstance(content, Picture) else None,
        features=_features(frame, features),
        size_bytes=size_bytes,
    )


def _features(frame: Decided, wanted: bool) -> dict[str, Array]:
    """What crossed, or would have, as the head computed it; nothing where the head did not get so far."""
    split, outputs = frame.active.manifest.split, frame.seen.outputs
    if not wanted or split is None or any(tensor.name not in outputs for tensor in split.wire):
        return {}
    return {tensor.name: outputs[tensor.name] for tensor in split.wire}


def _class_names(frame: Decided) -> Sequence[str]:
    manifest = frame.active.manifest
    return FINDINGS if manifest.exit is not None and manifest.exit.finding is not None else manifest.labels


def _name(names: Sequence[str], number: int) -> str:
    """A class by its name, or by its number where it has none that can be shown."""
    name = _words(names[number], MAX_WORDS) if 0 <= number < len(names) else ""
    return name if name.strip() else str(number)


def _words(text: str, most: int) -> str:
    shown = text[:most]
    return shown if shown.isprintable() else "".join(c if c.isprintable() else _UNPRINTABLE for c in shown)


def _share(value: float) -> float | None:
    return None if math.isnan(value) else min(1.0, max(0.0, value))
