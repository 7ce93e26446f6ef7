"""What a head keeps of its frames, and what it says of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from edge.head.decided import TailSaid
from edge.head.frame import Picture, Tensors
from edge.head.samples import keeper as samples
from splitmesh.errors import Reason
from splitmesh.model.manifest import Manifest
from splitmesh.routing.costs import NO_ANSWER
from splitmesh.routing.gate import Why
from splitmesh.samples.beside import Beside, folders_of
from splitmesh.samples.kept import StoreLimits
from splitmesh.tensor.spec import TensorSpec
from tests.support.models import CUT, LABELS
from tests.unit.kept_frames import AGREES, DIFFERS, Disk, counts, frame, keeper, kept, manifest, settings, wire
from tests.unit.sample_records import picture, spread


async def test_each_kind_of_frame_is_kept_for_its_reason(tmp_path: Path) -> None:
    keeping = keeper(tmp_path)
    await keeping.start()
    keeping.decided(frame(1))
    keeping.decided(frame(2, tail=DIFFERS))
    keeping.decided(frame(3, fallback=Reason.DEADLINE_EXPIRED))
    keeping.audited(frame(4, why=Why.SURE, tail=None), AGREES)
    keeping.audited(frame(5, why=Why.SURE, tail=None), DIFFERS)
    keeping.decided(frame(6, why=Why.UNDEFINED, answer=NO_ANSWER))
    keeping.decided(frame(7, why=Why.UNUSUAL, tail=None))
    await keeping.stop()
    assert [(one.record.kind, one.record.why) for one in kept(tmp_path)] == [
        ("hard", "UNSURE"),
        ("disputed", "UNSURE"),
        ("fallback", "DEADLINE_EXPIRED"),
        ("audit", "SURE"),
        ("disputed", "SURE"),
        ("hard", "UNDEFINED"),
        ("hard", "UNUSUAL"),
    ]


async def test_a_record_says_what_the_head_knew_and_the_picture_is_the_one_that_was_sent(tmp_path: Path) -> None:
    keeping = keeper(tmp_path)
    await keeping.start()
    message = bytearray(picture(spread(1)))
    keeping.decided(frame(1, content=Picture(memoryview(message)), tail=DIFFERS))
    message[:] = bytes(len(message))  # the message's bytes are used again
    await keeping.stop()
    (one,) = kept(tmp_path)
    record = one.record
    assert (record.site, record.node, record.camera, record.model, record.version) == (
        *("lyon", "mec-1", "line-1", "parts", 3),
    )
    assert (record.captured_at, record.trace_id) == (frame(1).arrived, f"{1:032x}")
    assert (record.score, record.ease) == ("max_probability", 0.25)
    assert (record.exit_label, record.exit_confidence) == (LABELS[1], 0.5)
    assert (record.tail_label, record.tail_confidence) == (LABELS[2], 0.5)
    assert Beside(lambda: folders_of(tmp_path)).picture(record.id) == picture(spread(1))
    assert record.features is None


async def test_easy_frames_that_nobody_checked_are_not_kept(tmp_path: Path) -> None:
    keeping = keeper(tmp_path)
    await keeping.start()
    keeping.decided(frame(1, why=Why.SURE, tail=None))
    keeping.decided(frame(2, why=Why.ASKED, ease=0.9))
    keeping.decided(frame(3, why=Why.ASKED, ease=0.9, tail=DIFFERS))
    keeping.decided(frame(4, why=Why.ASKED, ease=0.1))
    keeping.decided(frame(5, why=Why.ASKED, ease=float("nan")))
    await keeping.stop()
    found = [(one.record.captured_at.minute, one.record.kind) for one in kept(tmp_path)]
    assert found == [(3, "disputed"), (4, "hard"), (5, "hard")]


async def test_what_has_no_name_goes_by_its_number_and_what_cannot_be_shown_is_shown_as_such(tmp_path: Path) -> None:
    keeping = keeper(tmp_path)
    named = manifest().model_copy(update={"labels": ("a\nb", " ")})
    await keeping.start()
    keeping.decided(
        frame(1, answer=0, tail=TailSaid(1, 1.5, disagreed=True), said=named, camera="line\x00" + "x" * 200)
    )
    keeping.decided(frame(2, answer=2, tail=TailSaid(7, float("nan"), disagreed=True), said=named))
    keeping.decided(frame(3, answer=NO_ANSWER, tail=None, ease=float("nan")))
    await keeping.stop()
    first, second, third = (one.record for one in kept(tmp_path))
    assert (first.exit_label, first.tail_label, first.tail_confidence) == ("a�b", "1", 1.0)
    assert first.camera == ("line�" + "x" * 200)[:128]
    assert (second.exit_label, second.tail_label, second.tail_confidence) == ("2", "7", None)
    assert (third.exit_label, third.exit_confidence, third.ease) == (None, None, None)


async def test_a_detectors_exit_and_tail_say_nothing_or_something(tmp_path: Path) -> None:
    exit_ = manifest().exit
    assert exit_ is not None
    finding = exit_.model_construct(**{**dict(exit_), "finding": object()})
    keeping = keeper(tmp_path)
    await keeping.start()
    said = Manifest.model_construct(**{**dict(manifest()), "exit": finding, "labels": ("cat", "dog")})
    keeping.decided(frame(1, answer=1, tail=TailSaid(0, 0.9, disagreed=True), said=said))
    await keeping.stop()
    (one,) = kept(tmp_path)
    assert (one.record.exit_label, one.record.tail_label) == ("something", "nothing")


async def test_inputs_that_are_no_picture_leave_a_record_without_one(tmp_path: Path) -> None:
    keeping = keeper(tmp_path)
    await keeping.start()
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 2))
    keeping.decided(frame(1, content=Tensors(((spec, bytes(8)),))))
    keeping.decided(frame(2, content=Picture(b"no picture")))
    await keeping.stop()
    (one,) = kept(tmp_path)
    assert one.record.picture is None
    assert counts(tmp_path).dropped == {"IMAGE_UNDECODABLE": 1}


async def test_what_crossed_is_kept_beside_the_picture_where_that_is_wanted(tmp_path: Path) -> None:
    keeping = keeper(tmp_path, sample_features=True)
    await keeping.start()
    keeping.decided(frame(1, outputs=wire()))
    keeping.decided(frame(2, outputs={"exit": np.zeros((1, 3), np.float32)}))
    await keeping.stop()
    first, second = (one.record for one in kept(tmp_path))
    tensors = load(Beside(lambda: folders_of(tmp_path)).features(first.id))
    assert list(tensors) == [CUT]
    assert (tensors[CUT] == wire()[CUT]).all()
    assert second.features is None


async def test_an_observer_never_raises(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keeping = keeper(tmp_path)
    await keeping.start()
    keeping.decided(frame(1, answer="nonsense"))  # type: ignore[arg-type]
    keeping.decided(frame(2, content=Picture(b"x"), said=manifest()))
    await keeping.stop()
    assert counts(tmp_path).dropped == {"IMAGE_UNDECODABLE": 1, "INTERNAL": 1}
    caplog.clear()


async def test_a_head_that_keeps_nothing_touches_no_disk(tmp_path: Path) -> None:
    keeping = keeper(tmp_path, samples=False)
    await keeping.start()
    keeping.decided(frame(1))
    keeping.audited(frame(2, why=Why.SURE), DIFFERS)
    await keeping.stop()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("frame_bytes", "picture_bytes"), [(128 << 20, 128 << 20), (1 << 20, 32 << 20)])
def test_the_store_takes_every_picture_that_the_head_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frame_bytes: int, picture_bytes: int
) -> None:
    made: list[StoreLimits] = []
    monkeypatch.setattr(samples, "SampleStore", lambda _, limits: made.append(limits))
    samples.SampleKeeper(settings(tmp_path, max_pixels=50_000_000, max_frame_bytes=frame_bytes))
    (limits,) = made
    assert (limits.max_pixels, limits.max_picture_bytes) == (50_000_000, picture_bytes)


async def test_a_picture_larger_than_all_that_may_wait_waits_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "MAX_WAITING_BYTES", len(picture(spread(1))) // 2)
    disk = Disk(tmp_path / "samples")
    keeping = keeper(tmp_path, disk)
    disk.goes_on.clear()
    await keeping.start()
    keeping.decided(frame(1))
    keeping.decided(frame(2))
    disk.goes_on.set()
    await keeping.stop()
    assert [one.record.captured_at.minute for one in kept(tmp_path)] == [1]
    assert counts(tmp_path).dropped == {"QUEUE_FULL": 1}


async def test_what_fails_for_every_sample_is_logged_once_in_a_while_with_how_many_it_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Disk):
        def add(self, *arguments: Any, **named: Any) -> Any:
            raise KeyError("MPO")

    keeping = keeper(tmp_path, Broken(tmp_path / "samples"))
    for seconds, frames in ((1000.0, range(1, 6)), (0.0, range(6, 7))):
        monkeypatch.setattr(samples, "TELL_S", seconds)
        await keeping.start()
        for n in frames:
            keeping.decided(frame(n))
        await keeping.stop()
    told = [one.getMessage() for one in caplog.records if one.exc_info]
    assert told == ["1 samples could not be kept; the last one", "5 samples could not be kept; the last one"]
    assert counts(tmp_path).dropped == {"INTERNAL": 6}
    caplog.clear()
