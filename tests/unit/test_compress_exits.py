"""Exits in a recipe: at the cut and before it, stages, a detector's finding, and what the report says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from splitmesh.compress import exit_report, exits
from splitmesh.compress.recipe import Exits
from splitmesh.compress.work import Context, Samples, Work
from splitmesh.errors import MeshError, Reason
from splitmesh.model.artifacts import split_bytes
from splitmesh.model.calibration import Calibration
from splitmesh.model.manifest import DEFERRAL, HEAD, OUTCOMES, UNUSUAL, Manifest
from splitmesh.model.outcomes import CalibrationOutcomes, Part
from splitmesh.model.verify import run_all
from splitmesh.routing.deferral import Deferral
from splitmesh.routing.finding import NOTHING
from splitmesh.routing.gate import ESCALATE_ALL
from splitmesh.routing.rule import DEFERRAL as BY_GAIN
from splitmesh.routing.rule import Judge, Rule
from splitmesh.routing.threshold import answered_by, choose_threshold, samples_needed
from splitmesh.routing.unusual import Unusual
from splitmesh.runtime import open_session
from splitmesh.tensor.spec import Array
from tests.support.exit_nets import LABELS, classifier, detector, pictures_of, trunk
from tests.unit.onnx_nets import data, model, node, value, weight


def _work(
    whole: bytes, at: Sequence[str], pictures: Array, labels: Sequence[str], *, seed: int = 0
) -> tuple[Work, Samples, Manifest]:
    size = onnx.load_model_from_string(whole).graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    manifest, artifacts = split_bytes(whole, at, labels=labels, feeds=[{"x": pictures[:size]}])
    inputs = tuple(info.spec() for info in manifest.whole.inputs)
    calibration = Calibration({"x": pictures}, None, inputs)
    return Work(manifest, artifacts), Samples.divide(calibration, holdout_share=0.4, seed=seed), manifest


def _apply(work: Work, samples: Samples, step: Exits, tmp_path: Path, original: bytes | None = None) -> Work:
    context = Context(samples, original or work.whole(), work.manifest, tmp_path, lambda step, share: None)
    return exits.apply(work, step, context)


@pytest.fixture(scope="module")
def classified() -> tuple[Work, Samples]:
    work, samples, _ = _work(classifier(), ["late"], pictures_of()[0], LABELS)
    return work, samples


@pytest.fixture(scope="module")
def staged(classified: tuple[Work, Samples], tmp_path_factory: pytest.TempPathFactory) -> Work:
    return _apply(*classified, Exits(at=("early", "middle")), tmp_path_factory.mktemp("exits"))


def _rows(segments: Sequence[bytes], feeds: dict[str, Array]) -> dict[str, Array]:
    return run_all([open_session(content) for content in segments], feeds)


def test_without_further_tensors_there_is_one_exit_and_no_stage(
    classified: tuple[Work, Samples], tmp_path: Path
) -> None:
    work, samples = classified
    made = _apply(work, samples, Exits(), tmp_path)
    assert made.manifest.exit is not None
    assert made.manifest.exit.output == "exit_probabilities"
    assert (made.manifest.exit.fit_samples, made.manifest.exit.holdout_samples) == (
        len(samples.fit),
        len(samples.holdout),
    )
    assert made.manifest.exit.holdout_agreement > 0.9
    assert not made.manifest.stages
    assert not made.manifest.earlier_exits
    assert {*work.artifacts, OUTCOMES} <= set(made.artifacts) <= {*work.artifacts, OUTCOMES, DEFERRAL, UNUSUAL}
    assert CalibrationOutcomes.from_bytes(made.artifacts[OUTCOMES]).exits == 1


def test_the_stages_together_give_what_the_head_gives(classified: tuple[Work, Samples], staged: Work) -> None:
    manifest = staged.manifest
    assert [stage.artifact for stage in manifest.stages] == ["head_1.onnx", "head_2.onnx", "head_3.onnx"]
    feeds = {"x": pictures_of(33, seed=4)[0]}
    whole = open_session(staged.artifacts[HEAD]).run(feeds)
    pieces = _rows([staged.artifacts[stage.artifact] for stage in manifest.stages], feeds)
    assert [entry.output for entry in manifest.exits()] == [
        "exit_1_probabilities",
        "exit_2_probabilities",
        "exit_probabilities",
    ]
    logits = ["exit_1_logits", "exit_2_logits", "exit_logits"]
    assert [entry.logits for entry in manifest.exits()] == logits
    assert [entry.features for entry in manifest.exits()] == [None, None, "exit_features"]
    assert whole.keys() == {"late", *(entry.output for entry in manifest.exits()), *logits, "exit_features"}
    for name, array in whole.items():
        np.testing.assert_allclose(pieces[name], array, rtol=1e-5, atol=1e-6)
    assert {entry.name for entry in manifest.stages[0].outputs} == {"early", "exit_1_probabilities", "exit_1_logits"}


def test_a_stage_computes_its_part_only(staged: Work) -> None:
    convolutions = [
        [entry.op_type for entry in onnx.load_model_from_string(staged.artifacts[stage.artifact]).graph.node].count(
            "Conv"
        )
        for stage in staged.manifest.stages
    ]
    assert convolutions == [1, 1, 1]


def test_the_outcomes_are_those_of_the_hold_out_and_of_every_exit(
    classified: tuple[Work, Samples], staged: Work
) -> None:
    work, samples = classified
    feeds = samples.calibration.feeds(samples.holdout)
    expected = open_session(work.whole()).run(feeds)["logits"].argmax(axis=1)
    given = open_session(staged.artifacts[HEAD]).run(feeds)
    confidences, agrees = CalibrationOutcomes.from_bytes(staged.artifacts[OUTCOMES]).columns()
    for number, entry in enumerate(staged.manifest.exits()):
        np.testing.assert_allclose(confidences[:, number], given[entry.output].max(axis=1), atol=1e-5)
        np.testing.assert_array_equal(agrees[:, number], given[entry.output].argmax(axis=1) == expected)
        assert entry.holdout_agreement == agrees[:, number].mean()


@pytest.fixture(scope="module")
def many() -> tuple[Work, Samples]:
    """Enough samples for what tells hard ones."""
    work, samples, _ = _work(classifier(), ["late"], pictures_of(700)[0], LABELS)
    return work, samples


def test_what_tells_hard_samples_comes_with_the_version_and_reads_what_the_head_gives(
    many: tuple[Work, Samples], tmp_path: Path
) -> None:
    samples = many[1]
    staged = _apply(*many, Exits(at=("early", "middle")), tmp_path)
    exit_ = staged.manifest.exit
    assert exit_ is not None
    assert exit_.logits is not None
    assert exit_.features is not None
    outcomes = CalibrationOutcomes.from_bytes(staged.artifacts[OUTCOMES]).of(Part.HOLDOUT)
    given = open_session(staged.artifacts[HEAD]).run(samples.calibration.feeds(samples.holdout))
    rows, features = given[exit_.output], given[exit_.features]
    deferral = Deferral.from_bytes(staged.artifacts[DEFERRAL])
    assert outcomes.worth is not None
    np.testing.assert_allclose(deferral.worth(rows, features), outcomes.worth, atol=1e-3)
    unusual = Unusual.from_bytes(staged.artifacts[UNUSUAL])
    assert outcomes.strange is not None
    assert (unusual.strange(features) == outcomes.strange).mean() > 0.99
    shifted = samples.calibration.feeds(samples.holdout)
    far = open_session(staged.artifacts[HEAD]).run({"x": shifted["x"] * 3 + 1})[exit_.features]
    assert unusual.strange(far).mean() > 0.9
    assert outcomes.logits is not None
    np.testing.assert_allclose(given[exit_.logits], outcomes.logits[:, -1], atol=1e-4)
    eases, answers = outcomes.eases(Rule(BY_GAIN))
    assert np.isnan(eases[:, :-1]).all()
    np.testing.assert_allclose(eases[:, -1], 1 - np.clip(outcomes.worth, 0, 1))
    np.testing.assert_array_equal(answers[:, -1], rows.argmax(axis=1))


def test_labels_make_the_gain_one_of_being_right_not_of_agreeing(many: tuple[Work, Samples], tmp_path: Path) -> None:
    work, samples = many
    feeds = samples.calibration.feeds(np.arange(samples.calibration.samples))
    whole = open_session(work.whole()).run(feeds)["logits"].argmax(axis=1)
    # The truth is what the whole model never says, so asking it gains nothing.
    calibration = Calibration(
        samples.calibration.tensors, None, samples.calibration.inputs, labels=((whole + 1) % 3).astype(np.int64)
    )
    told = Samples(calibration, samples.fit, samples.validation, samples.holdout, samples.seed, samples.holdout_share)
    made = _apply(work, told, Exits(), tmp_path)
    worth = CalibrationOutcomes.from_bytes(made.artifacts[OUTCOMES]).worth
    assert worth is not None
    assert np.median(worth) < 0.05


def test_too_few_samples_to_tell_hard_ones_make_a_version_without(tmp_path: Path) -> None:
    work, samples, _ = _work(classifier(), ["late"], pictures_of(90)[0], LABELS)
    made = _apply(work, samples, Exits(), tmp_path)
    assert made.artifacts.keys().isdisjoint({DEFERRAL, UNUSUAL})
    outcomes = CalibrationOutcomes.from_bytes(made.artifacts[OUTCOMES])
    assert outcomes.worth is None
    assert outcomes.strange is None


def test_the_original_is_what_an_exit_learns_not_what_became_of_it(
    classified: tuple[Work, Samples], tmp_path: Path
) -> None:
    work, samples = classified
    original = onnx.load_model_from_string(work.whole())
    for tensor in original.graph.initializer:
        if tensor.name in ("w3", "b3"):
            swapped = np.roll(numpy_helper.to_array(tensor), 1, axis=-1)
            tensor.CopyFrom(numpy_helper.from_array(swapped, tensor.name))
    made = _apply(work, samples, Exits(), tmp_path, original=data(original))
    feeds = samples.calibration.feeds(samples.holdout)
    exit_, now = (
        open_session(content).run(feeds)[name].argmax(axis=1)
        for content, name in ((made.artifacts[HEAD], "exit_probabilities"), (work.whole(), "logits"))
    )
    assert (exit_ == (now + 1) % 3).mean() > 0.9


def test_weights_come_from_the_fit_samples_and_nothing_from_the_hold_out(
    classified: tuple[Work, Samples], tmp_path: Path
) -> None:
    work, samples = classified
    spoilt = samples.calibration.tensors["x"].copy()
    spoilt[samples.holdout] = 7
    other = Samples(
        Calibration({"x": spoilt}, None, samples.calibration.inputs),
        samples.fit,
        samples.validation,
        samples.holdout,
        samples.seed,
        samples.holdout_share,
    )
    clean, blind = (_apply(work, given, Exits(at=("early",)), tmp_path) for given in (samples, other))
    assert clean.artifacts[HEAD] == blind.artifacts[HEAD]
    assert clean.artifacts[OUTCOMES] != blind.artifacts[OUTCOMES]


@pytest.mark.parametrize("opset", [8, 21])
def test_old_and_new_operator_sets_get_stages_that_give_what_the_head_gives(opset: int, tmp_path: Path) -> None:
    work, samples, _ = _work(classifier(opset=opset), ["late"], pictures_of(150)[0], LABELS)
    made = _apply(work, samples, Exits(at=("early",)), tmp_path)
    assert len(made.manifest.stages) == 2


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_is_filled_up_and_only_the_real_samples_count(batch: int, tmp_path: Path) -> None:
    work, samples, _ = _work(classifier(batch=batch), ["late"], pictures_of(151)[0], LABELS)
    made = _apply(work, samples, Exits(at=("early",)), tmp_path)
    outcomes = CalibrationOutcomes.from_bytes(made.artifacts[OUTCOMES])
    assert outcomes.n == len(samples.validation) + len(samples.holdout)
    assert outcomes.of(Part.HOLDOUT).n == len(samples.holdout)
    varying, same, _ = _work(classifier(), ["late"], pictures_of(151)[0], LABELS)
    reference = _apply(varying, same, Exits(at=("early",)), tmp_path)
    ours, theirs = (CalibrationOutcomes.from_bytes(made.artifacts[OUTCOMES]) for made in (made, reference))
    np.testing.assert_allclose(ours.columns()[0], theirs.columns()[0], atol=1e-4)


@pytest.mark.parametrize(
    ("at", "reason", "message"),
    [
        (("middle", "early"), Reason.CUT_INVALID, "does not lie behind"),
        (("early", "early"), Reason.CUT_INVALID, "same place"),
        (("late",), Reason.CUT_INVALID, "is what the head ends in"),
        (("erly",), Reason.CUT_INVALID, "did you mean 'early'"),
        (("logits",), Reason.CUT_INVALID, "no tensor 'logits'"),
    ],
)
def test_a_tensor_where_no_exit_can_sit_is_refused_and_said_why(
    classified: tuple[Work, Samples], tmp_path: Path, at: tuple[str, ...], reason: Reason, message: str
) -> None:
    with pytest.raises(MeshError, match=message) as caught:
        _apply(*classified, Exits(at=at), tmp_path)
    assert caught.value.reason is reason


def test_a_tensor_with_a_shortcut_beside_it_is_refused(tmp_path: Path) -> None:
    nodes, weights = trunk()
    nodes += [
        node("Add", "c1 c1", "double"),
        node("Conv", "early w1", "again", pads=[1, 1, 1, 1]),
        node("Add", "double again", "sum"),
        node("GlobalAveragePool", "sum", "gap"),
        node("Flatten", "gap", "flat"),
        node("Gemm", "flat w3", "logits"),
    ]
    keep = [entry for entry in nodes if entry.output[0] not in ("middle", "c2", "late")]
    whole = data(
        model(keep, [value("x", ["N", 1, 16, 16])], [value("logits", ["N", 3])], [*weights[:2], weight("w3", 8, 3)])
    )
    work, samples, _ = _work(whole, ["sum"], pictures_of()[0], LABELS)
    with pytest.raises(MeshError, match="does not separate") as caught:
        _apply(work, samples, Exits(at=("double",)), tmp_path)
    assert caught.value.reason is Reason.CUT_INVALID


def test_a_classifier_takes_no_finding(classified: tuple[Work, Samples], tmp_path: Path) -> None:
    with pytest.raises(MeshError, match="for detectors") as caught:
        _apply(*classified, Exits(found_output="logits"), tmp_path)
    assert caught.value.reason is Reason.FIELD_INVALID


def test_a_version_that_is_whole_or_has_exits_is_refused(
    classified: tuple[Work, Samples], staged: Work, tmp_path: Path
) -> None:
    work, samples = classified
    whole = Work(work.manifest.model_copy(update={"split": None}), work.artifacts)
    for given, message in ((whole, "split the version first"), (staged, "has exits already")):
        with pytest.raises(MeshError, match=message) as caught:
            _apply(given, samples, Exits(), tmp_path)
        assert caught.value.reason is Reason.MODEL_INCOMPLETE


def test_the_report_reads_thresholds_off_the_validation_samples_and_measures_on_the_hold_out(
    classified: tuple[Work, Samples], staged: Work
) -> None:
    work, samples = classified
    entries = exit_report.report(staged, samples, work.whole())
    assert [entry.name for entry in entries] == [*(e.output for e in staged.manifest.exits()), exit_report.ALL_EXITS]
    confidences, agrees = CalibrationOutcomes.from_bytes(staged.artifacts[OUTCOMES]).columns()
    for point in entries[-1].points:
        by = answered_by(confidences, point.threshold)
        assert point.coverage.n == point.disagreement.n == len(samples.holdout)
        assert point.coverage.share == (by >= 0).mean()
        wrong = (by >= 0) & ~agrees[np.arange(len(by)), by]
        assert point.disagreement.share == wrong.mean()
        assert point.disagreement.low <= wrong.mean() <= point.disagreement.high
    coverages = [point.coverage.share for point in entries[-1].points]
    assert coverages == sorted(coverages)
    assert coverages[-1] > 0.8


def test_a_version_without_exits_has_nothing_to_report(classified: tuple[Work, Samples]) -> None:
    assert exit_report.report(*classified, classified[0].whole()) == ()


# Detectors


@pytest.fixture(scope="module")
def detecting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Work, Work, Samples]:
    work, samples, _ = _work(detector(), ["late", "pooled"], pictures_of(noise=0.2)[0], ())
    return (
        work,
        _apply(work, samples, Exits(found_output="found", found_score=0.6), tmp_path_factory.mktemp("detector")),
        samples,
    )


def _something(work: Work, pictures: Array) -> NDArray[np.bool_]:
    session = open_session(work.whole())
    found = [session.run({"x": picture[None]})["found"] for picture in pictures]
    assert {len(entry) == 0 for entry in found} == {True, False}
    return np.array([bool((entry >= 0.6).any()) for entry in found])


def test_a_detectors_exit_says_whether_anything_is_found_even_where_no_box_comes_out(
    detecting: tuple[Work, Work, Samples],
) -> None:
    work, made, samples = detecting
    exit_ = made.manifest.exit
    assert exit_ is not None
    assert exit_.finding is not None
    assert (exit_.finding.output, exit_.finding.min_score) == ("found", 0.6)
    pictures = samples.calibration.tensors["x"][samples.holdout]
    row = open_session(made.artifacts[HEAD]).run({"x": pictures})[exit_.output]
    something = _something(work, pictures)
    assert ((row.argmax(axis=1) != NOTHING) == something).mean() > 0.95
    assert exit_.holdout_agreement == ((row.argmax(axis=1) != NOTHING) == something).mean()


def test_only_a_sure_nothing_is_answered(detecting: tuple[Work, Work, Samples]) -> None:
    work, made, samples = detecting
    eases, agrees = CalibrationOutcomes.from_bytes(made.artifacts[OUTCOMES]).columns()
    pictures = samples.calibration.tensors["x"][samples.holdout]
    assert made.manifest.exit is not None
    row = open_session(made.artifacts[HEAD]).run({"x": pictures})[made.manifest.exit.output]
    says_nothing = row.argmax(axis=1) == NOTHING
    np.testing.assert_array_equal(np.isnan(eases[:, 0]), ~says_nothing)
    np.testing.assert_array_equal(agrees[says_nothing, 0], ~_something(work, pictures)[says_nothing])
    np.testing.assert_array_equal(Judge(finding=True).eases(row)[0], eases[:, 0])


def test_nothing_stays_unanswered_until_enough_samples_show_it(detecting: tuple[Work, Work, Samples]) -> None:
    _, made, _ = detecting
    outcomes = CalibrationOutcomes.from_bytes(made.artifacts[OUTCOMES])
    tolerated = 0.01
    confidences, agrees = outcomes.columns()
    assert len(agrees) < samples_needed(tolerated, 0.05)
    few = choose_threshold(confidences, agrees, max_disagreement=tolerated, delta=0.05)
    assert few.threshold == ESCALATE_ALL
    assert "too few" in few.reason
    often = samples_needed(tolerated, 0.05) // len(agrees) + 1
    sure = np.where(agrees, confidences, np.nan)
    enough = choose_threshold(
        np.tile(sure, (often, 1)), np.tile(agrees, (often, 1)), max_disagreement=tolerated, delta=0.05
    )
    assert 0 < enough.coverage == np.mean(~np.isnan(sure))


def test_a_detectors_exits_can_be_several(tmp_path: Path) -> None:
    net = onnx.load_model_from_string(detector())
    # Scores of the head's own features, so that a single tensor divides the head.
    for entry in net.graph.node:
        if entry.op_type == "Add" and entry.output[0] == "levels":
            entry.input[0] = "brightness"
    net.graph.node.insert(6, node("ReduceMean", "late", "brightness", axes=[1], keepdims=1))
    whole = onnx.utils.Extractor(net).extract_model(["x"], ["chosen", "found"])
    work, samples, _ = _work(data(whole), ["late"], pictures_of(noise=0.2)[0], ())
    made = _apply(work, samples, Exits(at=("early",), found_output="found", found_score=0.31), tmp_path)
    assert len(made.manifest.stages) == 2
    assert {entry.finding for entry in made.manifest.exits()} == {made.manifest.exits()[0].finding}
    assert CalibrationOutcomes.from_bytes(made.artifacts[OUTCOMES]).columns()[0].shape[1] == 2
    entries = exit_report.report(made, samples, work.whole())
    assert len(entries) == 3
    assert entries[-1].points[-1].coverage.share < 0.6


@pytest.mark.parametrize(
    ("settings", "reason", "message"),
    [
        ({}, Reason.MODEL_INCOMPLETE, "found_output"),
        ({"found_output": "scores"}, Reason.FIELD_INVALID, "it has 'chosen', 'found'"),
    ],
)
def test_a_detector_without_the_right_output_is_refused(
    detecting: tuple[Work, Work, Samples], tmp_path: Path, settings: dict[str, Any], reason: Reason, message: str
) -> None:
    work, _, samples = detecting
    with pytest.raises(MeshError, match=message) as caught:
        _apply(work, samples, Exits(**settings), tmp_path)
    assert caught.value.reason is reason


def test_a_detector_that_finds_something_never_or_always_teaches_nothing(
    detecting: tuple[Work, Work, Samples], tmp_path: Path
) -> None:
    work, _, samples = detecting
    pixels = samples.calibration.tensors["x"]
    for pictures, which in ((pixels * 0.1, "in none"), (pixels + 1, "in each")):
        calibration = Calibration({"x": pictures.astype(np.float32)}, None, samples.calibration.inputs)
        other = Samples(calibration, samples.fit, samples.validation, samples.holdout, 0, 0.4)
        with pytest.raises(MeshError, match=which) as caught:
            _apply(work, other, Exits(found_output="found"), tmp_path)
        assert caught.value.reason is Reason.CALIBRATION_INSUFFICIENT
