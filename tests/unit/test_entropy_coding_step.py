"""Tables and rates of a rounded cut: order, figures, budgets, and versions that have none."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from splitmesh.compress.answers import Original, expected_disagreement
from splitmesh.compress.bottleneck import apply as apply_bottleneck
from splitmesh.compress.coding import SMALLER, CutCoder, attach_tables
from splitmesh.compress.cutting import apply_quantise, apply_split
from splitmesh.compress.recipe import Bottleneck, Budget, QuantiseCut, Split
from splitmesh.compress.work import Context, Work
from splitmesh.errors import MeshError, Reason
from splitmesh.model.classes import as_probabilities
from splitmesh.model.manifest import TABLES
from splitmesh.runtime import open_session
from splitmesh.tensor.entropy import RangeCodec, Tables
from tests.unit.compress_works import balanced, context_of, whole_work
from tests.unit.onnx_nets import residual


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return context_of(whole_work(balanced(residual())), tmp_path)


@pytest.fixture
def rounded(context: Context) -> Work:
    whole = whole_work(balanced(residual()))
    return apply_quantise(apply_split(whole, Split(at=("a",)), context), QuantiseCut(), context)


def test_rates_come_best_first_and_each_is_clearly_smaller(rounded: Work) -> None:
    split = rounded.manifest.split
    assert split is not None
    assert split.coding is not None
    sizes = [rate.wire_bytes for rate in split.coding.rates]
    assert len(sizes) > 1
    assert all(after < before for before, after in itertools.pairwise(sizes))
    # chosen on other samples than these figures are of
    assert all(after <= (SMALLER + 0.1) * before for before, after in itertools.pairwise(sizes))
    assert {rate.channels for rate in split.coding.rates} == {8}
    assert split.coding.artifact == TABLES in rounded.manifest.artifacts()
    assert split.coding.encode_ms > 0
    assert split.coding.decode_ms > 0


def test_the_figures_are_those_of_the_files_on_the_holdout(rounded: Work, context: Context) -> None:
    split = rounded.manifest.split
    assert split is not None
    assert split.coding is not None
    tables = Tables.from_bytes(rounded.artifacts[TABLES])
    codec = RangeCodec(tables, [info.spec() for info in split.wire])
    head, tail = (open_session(content) for content in rounded.segments())
    whole = open_session(context.original)
    holdout = context.samples.holdout
    for number, rate in enumerate(split.coding.rates):
        sizes, same = [], []
        for row in holdout:
            feed = context.samples.calibration.feeds(np.array([row]))
            sent = head.run(feed)[split.wire[0].name]
            payload = codec.at(number).encode(sent.tobytes())
            sizes.append(len(payload))
            got = np.frombuffer(codec.decode(payload, sent.nbytes), np.uint8).reshape(sent.shape)
            answer = as_probabilities(tail.run({split.wire[0].name: got})["logits"]).argmax()
            same.append(answer == as_probabilities(whole.run(feed)["logits"]).argmax())
        assert rate.wire_bytes == pytest.approx(np.mean(sizes))
        assert rate.agreement == pytest.approx(np.mean(same))
    assert split.coding.samples == len(holdout)


def test_named_rates_are_taken_as_they_are(rounded: Work, context: Context) -> None:
    made = attach_tables(rounded, context, rates=[(8, 1), (4, 16)])
    assert made.manifest.split is not None
    assert made.manifest.split.coding is not None
    assert [(rate.channels, rate.step) for rate in made.manifest.split.coding.rates] == [(8, 1), (4, 16)]
    assert Tables.from_bytes(made.artifacts[TABLES]).rates == ((8, 1), (4, 16))


def test_at_most_so_many_rates_are_made(rounded: Work, context: Context) -> None:
    made = attach_tables(rounded, context, most=1)
    assert made.manifest.split is not None
    assert made.manifest.split.coding is not None
    assert len(made.manifest.split.coding.rates) == 1


def test_a_looser_budget_sends_less(context: Context, tmp_path: Path) -> None:
    whole = whole_work(balanced(residual()))
    cut = apply_split(whole, Split(at=("a",)), context)
    sizes = []
    for allowed in (0.0, 0.3):
        held = context_of(whole, tmp_path, samples=context.samples, budget=Budget(max_disagreement=allowed))
        split = apply_quantise(cut, QuantiseCut(), held).manifest.split
        assert split is not None
        assert split.coding is not None
        best = split.coding.rates[0]
        sizes.append(best.wire_bytes)
        assert best.agreement is not None
        assert best.agreement >= 1 - allowed - 0.05
    assert sizes[1] < 0.8 * sizes[0]


def test_without_classes_the_error_of_the_outputs_is_measured(tmp_path: Path) -> None:
    whole = whole_work(residual(), classes=0)
    context = context_of(whole, tmp_path, budget=Budget(max_output_error=0.2))
    split = apply_quantise(apply_split(whole, Split(at=("a",)), context), QuantiseCut(), context).manifest.split
    assert split is not None
    assert split.coding is not None
    errors = [rate.output_error for rate in split.coding.rates]
    assert all(rate.agreement is None for rate in split.coding.rates)
    assert errors[0] is not None
    assert 0 < errors[0] <= 0.2
    assert errors == sorted(errors, key=lambda error: error or 0)


def test_only_a_rounded_cut_in_two_is_coded(context: Context) -> None:
    whole = whole_work(balanced(residual()))
    for work in (whole, apply_split(whole, Split(at=("a",)), context)):
        with pytest.raises(MeshError) as caught:
            attach_tables(work, context)
        assert caught.value.reason == Reason.MODEL_INCOMPLETE


def test_codes_are_those_of_the_head(rounded: Work, context: Context) -> None:
    coder = CutCoder(rounded, context)
    (codes,) = coder.codes(context.samples.holdout)
    feed = context.samples.calibration.feeds(context.samples.holdout)
    np.testing.assert_array_equal(codes, open_session(rounded.segments()[0]).run(feed)[coder.specs[0].name])
    coder.close()


def test_expected_disagreement_counts_every_pair() -> None:
    random = np.random.default_rng(0)
    margins, moved = random.exponential(1, 50), random.normal(0, 0.5, 50)
    pairs = np.mean([margin + move < 0 for margin in margins for move in moved])
    assert expected_disagreement(margins, moved) == pytest.approx(pairs)
    assert expected_disagreement(margins, np.zeros(50)) == 0


def test_the_originals_answers_are_compared_batch_by_batch(context: Context) -> None:
    rows = context.samples.holdout
    answers = Original(context, "logits").answers(rows)
    whole = open_session(context.original)
    same = answers.distance(whole, {"x": context.samples.calibration.feeds(rows)["x"]})
    assert (same.agreed, same.samples, same.output_error, same.expected) == (len(rows), len(rows), 0.0, 0.0)
    noise = np.random.default_rng(0).normal(0, 3, (len(rows), 3, 8, 8)).astype(np.float32)
    other = answers.distance(whole, {"x": noise})
    assert other.agreed is not None
    assert other.agreed < len(rows)
    assert other.output_error > 0


def test_a_bottlenecks_rates_may_leave_out_channels(context: Context) -> None:
    made = apply_bottleneck(whole_work(balanced(residual())), Bottleneck(at=("a",), channels=8), context)
    coded = attach_tables(made, context, rates=[(8, 1), (2, 1)])
    assert coded.manifest.split is not None
    assert coded.manifest.split.coding is not None
    first, second = coded.manifest.split.coding.rates
    assert second.wire_bytes < first.wire_bytes
