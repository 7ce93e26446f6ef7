"""Figures of a version: against answers and sizes worked out another way, and against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import zstandard
from PIL import Image

from splitmesh.compress.cutting import apply_quantise, apply_split
from splitmesh.compress.exits import apply as apply_exits
from splitmesh.compress.measure import Measurements, exceeded, measure
from splitmesh.compress.measure_ways import mesh_point
from splitmesh.compress.recipe import Budget, Exits, QuantiseCut, Split
from splitmesh.compress.report import Proportion
from splitmesh.compress.uploads import CODECS, FULL_SIZE, measure_uploads
from splitmesh.compress.work import Context, Samples, Work
from splitmesh.errors import MeshError, Reason
from splitmesh.model.calibration import PIXELS, Calibration, pack_calibration, unpack_calibration
from splitmesh.model.manifest import WHOLE, Manifest
from splitmesh.model.picture_codecs import PictureCodec, encode_picture
from splitmesh.routing.gate import ESCALATE_ALL
from splitmesh.runtime import open_session
from splitmesh.tensor.entropy import RangeCodec, Tables
from splitmesh.tensor.framing import pack, unpack
from tests.integration.small_model import CUT, SIDE, small_manifest, small_model, small_pictures

COUNT = 160
ORIGINAL = small_model()


def calibration(manifest: Manifest, labels: bool = True) -> Calibration:
    pixels = small_pictures(COUNT)
    if not labels:
        return unpack_calibration(pack_calibration(pixels), manifest)
    named = np.array([number % 4 - 1 for number in range(COUNT)], dtype=np.int64)
    return unpack_calibration(pack_calibration(pixels, labels=named), manifest)


def context(samples: Samples, manifest: Manifest, folder: Path) -> Context:
    return Context(samples, ORIGINAL, manifest, folder, lambda step, share: None)


def rounded(samples: Samples, manifest: Manifest, folder: Path) -> Work:
    about = context(samples, manifest, folder)
    work = apply_split(Work(manifest, {WHOLE: ORIGINAL}), Split(at=(CUT,)), about)
    return apply_quantise(work, QuantiseCut(), about)


def raw_manifest() -> Manifest:
    return small_manifest().model_copy(update={"task": "raw", "labels": ()})


class Measured:
    """One version, measured once."""

    def __init__(self, folder: Path) -> None:
        self.manifest = small_manifest()
        self.samples = Samples.divide(calibration(self.manifest), holdout_share=0.3, seed=1)
        work = rounded(self.samples, self.manifest, folder)
        self.work = apply_exits(work, Exits(), context(self.samples, self.manifest, folder))
        self.told: list[float] = []
        self.found = measure(
            ORIGINAL,
            self.manifest,
            self.work,
            self.samples,
            threads=1,
            progress=lambda step, share: self.told.append(share),
        )

    def scores(
        self, rows: np.ndarray[tuple[int], np.dtype[np.int64]]
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        (scores,) = ort.InferenceSession(ORIGINAL).run(None, self.samples.calibration.feeds(rows))
        return np.asarray(scores)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return Measured(tmp_path_factory.mktemp("measure"))


def test_bytes_and_answers_of_every_rate_are_those_of_frames_on_a_wire(measured: Measured) -> None:
    """Coded, packed, unpacked and run one by one, where the measuring takes a shorter way."""
    split = measured.work.manifest.split
    assert split is not None
    assert split.coding is not None
    tables = Tables.from_bytes(measured.work.artifacts[split.coding.artifact])
    codec = RangeCodec(tables, [info.spec() for info in split.wire])
    head, tail = (ort.InferenceSession(content) for content in measured.work.segments())
    names = [output.name for output in head.get_outputs()]
    wire = split.wire[0].name
    rows = measured.samples.holdout
    expected = measured.scores(rows).argmax(axis=1)
    points = {point.name: point for point in measured.found.points}
    assert sum(name.startswith("int8 cut, rate") for name in points) == len(split.coding.rates) >= 2
    for rate in range(len(split.coding.rates)):
        sizes, answers = [], []
        for row in rows:
            features = dict(
                zip(names, head.run(None, measured.samples.calibration.feeds(np.array([row]))), strict=True)
            )
            frame = pack([(wire, features[wire])], codec.at(rate))
            sizes.append(len(frame.payload))
            (received,) = unpack(frame, codecs={codec.name: codec})
            answers.append(int(tail.run(["logits"], {wire: received})[0].argmax()))
        point = points[f"int8 cut, rate {rate}"]
        assert point.wire_bytes == pytest.approx(np.mean(sizes))
        assert point.agreement == Proportion.of(int((np.array(answers) == expected).sum()), len(rows))
        if rate == 0:
            assert measured.found.agreement == point.agreement


def test_the_plain_cut_is_what_zstd_makes_of_the_features(measured: Measured) -> None:
    model = onnx.load_model_from_string(ORIGINAL)
    model.graph.output.append(onnx.helper.make_tensor_value_info(CUT, onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(model.SerializeToString())
    packer = zstandard.ZstdCompressor(level=3)
    sizes = [
        len(packer.compress(session.run([CUT], measured.samples.calibration.feeds(np.array([row])))[0].tobytes()))
        for row in measured.samples.holdout
    ]
    points = {point.name: point for point in measured.found.points}
    assert points["float32 cut, zstd"].wire_bytes == pytest.approx(np.mean(sizes))
    assert points["float32 cut, zstd"].agreement == Proportion.of(len(sizes), len(sizes))
    assert points["int8 cut, zstd"].wire_bytes < points["float32 cut, zstd"].wire_bytes / 2


def test_accuracy_counts_only_samples_whose_class_is_known(measured: Measured) -> None:
    rows = measured.samples.holdout
    labels = measured.samples.labels(rows)
    assert labels is not None
    known = labels >= 0
    right = int((measured.scores(rows).argmax(axis=1) == labels)[known].sum())
    assert 0 < known.sum() < len(rows)
    assert measured.found.accuracy_before == Proportion.of(right, int(known.sum()))
    assert measured.found.accuracy is not None
    assert measured.found.accuracy.n == known.sum()


def test_exits_make_mesh_points_that_cost_less_than_the_rate_they_escalate_at(measured: Measured) -> None:
    points = {point.name: point for point in measured.found.points}
    (report,) = measured.found.exits
    chosen = {point.tolerated: point for point in report.points}
    for tolerated in (0.005, 0.01):
        mesh = points[f"mesh, {tolerated:.1%} tolerated"]
        assert mesh.kind == "mesh"
        if chosen[tolerated].coverage.share:
            assert mesh.wire_bytes < points["int8 cut, rate 0"].wire_bytes
        else:
            assert mesh.wire_bytes == pytest.approx(points["int8 cut, rate 0"].wire_bytes)


def test_everything_that_takes_time_or_space_is_named(measured: Measured) -> None:
    assert measured.found.latency_ms.keys() == {"whole before", "whole", "head", "encode", "decode", "tail"}
    assert all(value > 0 for value in measured.found.latency_ms.values())
    assert measured.found.size_bytes["whole before"] == len(ORIGINAL)
    assert measured.found.size_bytes.keys() == {"whole before", *measured.work.artifacts}
    assert measured.told == sorted(measured.told)
    assert 0 <= measured.told[0] < measured.told[-1] <= 1


def test_a_version_that_is_whole_is_measured_as_a_whole() -> None:
    manifest = small_manifest()
    samples = Samples.divide(calibration(manifest, labels=False), holdout_share=0.3, seed=1)
    other = small_model(channels=4)
    found = measure(
        ORIGINAL, manifest, Work(manifest, {WHOLE: other}), samples, threads=1, progress=lambda step, share: None
    )
    feed = samples.calibration.feeds(samples.holdout)
    (before,), (after,) = (ort.InferenceSession(model).run(None, feed) for model in (ORIGINAL, other))
    same = int((before.argmax(axis=1) == after.argmax(axis=1)).sum())
    assert found.agreement == Proportion.of(same, len(samples.holdout))
    assert (found.accuracy, found.accuracy_before, found.output_error, found.exits) == (None, None, None, ())
    assert {point.kind for point in found.points} == {"upload"}
    assert found.latency_ms.keys() == {"whole before", "whole"}


def test_without_classes_the_difference_of_the_outputs_counts(tmp_path: Path) -> None:
    manifest = raw_manifest()
    samples = Samples.divide(calibration(manifest, labels=False), holdout_share=0.3, seed=1)
    work = rounded(samples, manifest, tmp_path)
    found = measure(ORIGINAL, manifest, work, samples, threads=1, progress=lambda step, share: None)
    head, tail = (ort.InferenceSession(content) for content in work.segments())
    split = work.manifest.split
    assert split is not None
    assert split.coding is not None
    codec = RangeCodec(Tables.from_bytes(work.artifacts[split.coding.artifact]), [info.spec() for info in split.wire])
    feed = samples.calibration.feeds(samples.holdout)
    (want,) = ort.InferenceSession(ORIGINAL).run(None, feed)
    (got,) = tail.run(None, {split.wire[0].name: codec.coarse(head.run(None, feed), 0)[0]})
    assert found.output_error == pytest.approx(np.sqrt(((want - got) ** 2).sum() / (want**2).sum()), rel=1e-4)
    assert found.agreement is None
    assert {point.agreement for point in found.points} == {None}
    assert all(point.output_error is not None for point in found.points)


def test_easy_samples_are_answered_by_exits_and_hard_ones_cross() -> None:
    """Two exits, threshold .8: the first answers sample 0, the second 1 and 2, nobody 3 and 4."""
    confidences = np.array([[0.9, 0.99], [0.5, 0.8], [np.nan, 0.95], [0.7, 0.7], [np.nan, np.nan]])
    answers = np.array([[1, 0], [0, 2], [0, 1], [2, 2], [2, 2]])
    tail, sizes = np.array([0, 0, 0, 1, 2]), np.array([10.0, 10.0, 10.0, 30.0, 50.0])
    expected, labels = np.array([1, 2, 0, 1, 0]), np.array([1, -1, 1, -1, 2])
    point = mesh_point(0.01, 0.8, confidences, answers, tail, sizes, expected, labels)
    assert point.name == "mesh, 1.0% tolerated"
    assert point.wire_bytes == (30 + 50) / 5
    assert point.agreement == Proportion.of(3, 5)  # 0, 1 and 3
    assert point.accuracy == Proportion.of(3, 3)  # 0, 2 and 4
    nobody = mesh_point(0.0, ESCALATE_ALL, confidences, answers, tail, sizes, expected, None)
    assert nobody.wire_bytes == sizes.mean()
    assert nobody.agreement == Proportion.of(int((tail == expected).sum()), 5)


def found_with(**changes: object) -> Measurements:
    nothing = Measurements((), None, None, None, None, (), {}, {})
    return replace(nothing, **changes)  # type: ignore[arg-type]


def test_exactly_what_is_allowed_is_within_the_budget() -> None:
    found = found_with(
        agreement=Proportion.of(99, 100), accuracy=Proportion.of(90, 100), accuracy_before=Proportion.of(92, 100)
    )
    assert exceeded(Budget(), found) == ()
    assert exceeded(Budget(max_disagreement=0.01, max_accuracy_loss=0.02), found) == ()
    (first, second) = exceeded(Budget(max_disagreement=0.009, max_accuracy_loss=0.019), found)
    assert (first.what, second.what, first.allowed) == ("max_disagreement", "max_accuracy_loss", 0.009)
    assert first.measured == pytest.approx(0.01)
    assert second.measured == pytest.approx(0.02)


def test_accuracy_that_was_gained_is_no_loss() -> None:
    found = found_with(accuracy=Proportion.of(95, 100), accuracy_before=Proportion.of(90, 100))
    assert exceeded(Budget(max_accuracy_loss=0.0), found) == ()


def test_a_limit_on_what_could_not_be_measured_does_not_pass_unseen() -> None:
    with pytest.raises(MeshError) as caught:
        exceeded(Budget(max_accuracy_loss=0.5), found_with(agreement=Proportion.of(1, 1)))
    assert caught.value.reason is Reason.CALIBRATION_INSUFFICIENT
    (entry,) = exceeded(Budget(max_output_error=0.1), found_with(output_error=0.2))
    assert (entry.measured, entry.allowed) == (0.2, 0.1)


def test_uploads_weigh_what_the_codecs_make_of_the_pixels(measured: Measured) -> None:
    pictures = measured.samples.calibration.pictures
    assert pictures is not None
    points = {point.name: point for point in measured.found.points if point.kind == "upload"}
    assert points.keys() == {codec.name for codec in CODECS}
    for codec in CODECS:
        sizes = [len(encode_picture(pictures[row], codec)) for row in measured.samples.holdout]
        assert points[codec.name].wire_bytes == pytest.approx(np.mean(sizes))
    png = points["png"]
    assert png.agreement == Proportion.of(len(measured.samples.holdout), len(measured.samples.holdout))
    assert png.accuracy == measured.found.accuracy_before
    assert points["jpeg q30"].wire_bytes < points["jpeg q90"].wire_bytes


def test_answers_to_uploads_are_those_to_the_decoded_pictures(measured: Measured, tmp_path: Path) -> None:
    calibrated = measured.samples.calibration
    pictures = calibrated.pictures
    assert pictures is not None
    codec = PictureCodec("webp q5", "WEBP", 5)
    rows = measured.samples.holdout
    decoded = []
    for row in rows:
        (tmp_path / "one.webp").write_bytes(encode_picture(pictures[row], codec))
        decoded.append(np.asarray(Image.open(tmp_path / "one.webp").convert("L"))[..., None])
    changed = replace(calibrated, tensors={PIXELS: np.stack(decoded)})
    (scores,) = ort.InferenceSession(ORIGINAL).run(None, changed.feeds(slice(0, len(rows))))
    same = int((scores.argmax(axis=1) == measured.scores(rows).argmax(axis=1)).sum())
    point = next(point for point in measured.found.points if point.name == "webp q5")
    assert same < len(rows)
    assert point.agreement == Proportion.of(same, len(rows))


def test_whole_pictures_are_measured_where_their_files_are_larger(measured: Measured, tmp_path: Path) -> None:
    pixels = measured.samples.calibration.pictures
    assert pixels is not None
    for side, wanted in ((SIDE, False), (3 * SIDE, True)):
        files = []
        for number, picture in enumerate(pixels):
            files.append(tmp_path / f"{side}_{number}.png")
            Image.fromarray(picture[..., 0]).resize((side, side), Image.Resampling.NEAREST).save(files[-1])
        samples = replace(measured.samples, calibration=replace(measured.samples.calibration, sources=tuple(files)))
        session = open_session(ORIGINAL)
        points = {point.name: point for point in measure_uploads(samples, session, "logits")}
        assert any(name.endswith(FULL_SIZE) for name in points) == wanted
        if wanted:
            assert points[f"jpeg q50{FULL_SIZE}"].wire_bytes > points["jpeg q50"].wire_bytes
            full = points[f"png{FULL_SIZE}"]
            assert full.agreement is not None
            assert full.agreement.share > 0.8
            files[int(samples.holdout[3])].unlink()
            left = {point.name for point in measure_uploads(samples, session, "logits")}
            assert left == {codec.name for codec in CODECS}
        session.close()


def test_a_codec_that_cannot_hold_a_whole_picture_has_no_point_at_full_size(measured: Measured, tmp_path: Path) -> None:
    pixels = measured.samples.calibration.pictures
    assert pixels is not None
    files = []
    for number, picture in enumerate(pixels):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(picture[..., 0]).save(files[-1])
    Image.new("L", (16384, 8), 9).save(files[int(measured.samples.holdout[0])])
    samples = replace(measured.samples, calibration=replace(measured.samples.calibration, sources=tuple(files)))
    session = open_session(ORIGINAL)
    full = {point.name for point in measure_uploads(samples, session, "logits") if point.name.endswith(FULL_SIZE)}
    session.close()
    assert full == {codec.name + FULL_SIZE for codec in CODECS if codec.image_format != "WEBP"}
