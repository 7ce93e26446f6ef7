"""A bottleneck trained on a small task: fewer bytes at kept answers, the same after an interruption, rates in order."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from splitmesh.compress.recipe import Bottleneck, Budget
from splitmesh.compress.train.bottleneck import TrainedCode, train_codes
from splitmesh.compress.train.bottleneck_data import gather
from splitmesh.compress.train.bottleneck_export import CODE, FEATURES, export_decoder, export_encoder
from splitmesh.compress.train.bottleneck_network import (
    Prior,
    channel_axis,
    first_channels,
    make_codec,
    narrowed,
    rounded,
    strides_for,
)
from splitmesh.compress.work import Context, Samples
from splitmesh.errors import MeshError, Reason
from splitmesh.model.calibration import PIXELS, Calibration
from splitmesh.model.manifest import Manifest, SegmentInfo
from splitmesh.model.preprocess import Preprocess
from splitmesh.model.segments import TensorInfo
from splitmesh.runtime import open_session
from splitmesh.tensor.spec import TensorSpec

SIDE, SAMPLES, CLASSES = 24, 240, 4


def blobs(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noisy pictures ``[n, side, side, 1]`` with one bright spot; the class is the quarter that it is in."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    ys, xs = np.mgrid[0:SIDE, 0:SIDE]
    pictures = []
    for label in labels:
        y, x = (rng.uniform(4, SIDE / 2 - 3) + SIDE / 2 * part for part in divmod(int(label), 2))
        spot = 130 * np.exp(-((ys - y) ** 2 + (xs - x) ** 2) / 10)
        pictures.append(np.clip(spot + rng.normal(50, 12, (SIDE, SIDE)), 0, 255))
    return np.stack(pictures)[..., None].astype(np.uint8), labels.astype(np.int64)


class Halves:
    """A trained net, cut in two: what the tests put a bottleneck between."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.head = nn.Sequential(nn.Conv2d(1, 12, 3, 1, 1), nn.ReLU())
        self.tail = nn.Sequential(
            nn.Conv2d(12, 8, 3, 2, 1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(72, CLASSES)
        )
        whole = nn.Sequential(self.head, self.tail)
        pixels, labels = blobs(400, seed=1)
        x = torch.from_numpy(PREPROCESS.normalise(pixels))
        optimizer = torch.optim.Adam(whole.parameters(), lr=1e-2)
        for start in range(0, 60 * 40, 40):
            rows = torch.arange(start, start + 40) % 400
            loss = nn.functional.cross_entropy(whole(x[rows]), torch.from_numpy(labels)[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.head_onnx = exported(self.head, (1, SIDE, SIDE), "picture", "cut")
        self.tail_onnx = exported(self.tail, (12, SIDE, SIDE), "cut", "logits")
        self.whole_onnx = exported(whole, (1, SIDE, SIDE), "picture", "logits")


PREPROCESS = Preprocess(width=SIDE, height=SIDE, mode="L", resize="stretch", mean=(0.25,), std=(0.2,))


def exported(module: nn.Module, shape: tuple[int, ...], given: str, result: str) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (torch.zeros(2, *shape),),
            file,
            dynamo=False,
            opset_version=17,
            input_names=[given],
            output_names=[result],
            dynamic_axes={given: {0: "batch"}, result: {0: "batch"}},
        )
    return file.getvalue()


@pytest.fixture(scope="module")
def halves() -> Halves:
    return Halves()


def context(
    halves: Halves, folder: Path, *, stop_at: float = 2.0, budget: Budget | None = None, as_tensors: bool = False
) -> Context:
    pixels, labels = blobs(SAMPLES, seed=2)
    inputs = (TensorSpec("picture", "float32", (-1, 1, SIDE, SIDE)),)
    if as_tensors:
        calibration = Calibration({"picture": PREPROCESS.normalise(pixels)}, None, inputs, labels)
    else:
        calibration = Calibration({PIXELS: pixels}, PREPROCESS, inputs, labels)
    manifest = Manifest(
        task="raw",
        preprocess=None if as_tensors else PREPROCESS,
        whole=SegmentInfo(
            artifact="whole.onnx",
            inputs=(TensorInfo.of(inputs[0]),),
            outputs=(TensorInfo(name="logits", dtype="float32", shape=(-1, CLASSES)),),
        ),
    )

    def progress(step: str, share: float) -> None:
        assert 0 <= share <= 1
        if step.startswith("training") and share >= stop_at:
            raise InterruptedError

    folder.mkdir(parents=True, exist_ok=True)
    return Context(
        Samples.divide(calibration, holdout_share=0.3, seed=0),
        halves.whole_onnx,
        manifest,
        folder,
        progress,
        Budget(max_disagreement=0.05) if budget is None else budget,
    )


def answers(model: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    with closing(open_session(model)) as session:
        result: NDArray[np.float32] = next(iter(session.run({session.inputs[0].name: x}).values()))
        return result


def crossing(halves: Halves, code: TrainedCode, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What crosses for these inputs, as whole numbers around zero."""
    found = answers(code.encoder.SerializeToString(), answers(halves.head_onnx, x)) / code.scale + code.zero_point
    return np.clip(np.rint(found), 0, 255).astype(np.float32) - code.zero_point


def entropy_bytes(code: NDArray[np.float32], axis: int) -> float:
    """Of one sample, by the empirical entropy of each channel."""
    bits = 0.0
    for channel in np.moveaxis(code, axis, 0):
        share = np.unique(channel, return_counts=True)[1] / channel.size
        bits -= float((share * np.log2(share)).sum()) * channel[0].size
    return bits / 8


def kept(halves: Halves, code: TrainedCode, crossed: NDArray[np.float32], x: NDArray[np.float32]) -> float:
    """Share of samples whose class is still the whole model's."""
    rebuilt = answers(code.decoder.SerializeToString(), crossed * np.float32(code.scale))
    return float((answers(halves.tail_onnx, rebuilt).argmax(1) == answers(halves.whole_onnx, x).argmax(1)).mean())


UNSEEN = PREPROCESS.normalise(blobs(200, seed=3)[0])


@pytest.fixture(scope="module")
def trained(halves: Halves, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedCode, Context]:
    given = context(halves, tmp_path_factory.mktemp("trained"))
    return train_codes(halves.head_onnx, halves.tail_onnx, "cut", Bottleneck(method="trained", epochs=30), given), given


def test_training_keeps_the_answers_with_far_fewer_bytes_than_an_untrained_code(
    halves: Halves, trained: tuple[TrainedCode, Context]
) -> None:
    code, given = trained
    crossed = crossing(halves, code, UNSEEN)
    features = answers(halves.head_onnx, UNSEEN)
    plain = np.rint(features / (features.max() / 255))
    assert kept(halves, code, crossed, UNSEEN) >= 0.93
    assert entropy_bytes(crossed, 1) < entropy_bytes(plain, 1) / 40
    codec = make_codec(
        features.shape[1:], code.channels, torch.zeros(12), torch.from_numpy(features).std((0, 2, 3)), True
    )
    codec.encoder.settle(torch.from_numpy(features))
    with torch.no_grad():
        fresh = rounded(codec.encoder(torch.from_numpy(features)))
        guess = codec.decoder(fresh).numpy()
    named = answers(halves.tail_onnx, guess).argmax(1)
    assert entropy_bytes(crossed, 1) < entropy_bytes(fresh.numpy(), 1) / 2
    assert (named == answers(halves.whole_onnx, UNSEEN).argmax(1)).mean() < 0.9
    assert given.figures["validation_disagreement"] <= 0.05
    assert not given.remarks


def test_the_dearest_price_within_the_budget_is_taken(trained: tuple[TrainedCode, Context]) -> None:
    code, _ = trained
    within = [entry for entry in code.judged if entry.within]
    assert len(code.judged) > 1
    assert code.rate_weight == within[-1].price
    assert within[-1].bits < within[0].bits


def test_fewer_channels_and_coarser_steps_cost_less_and_most_answers_stay(
    halves: Halves, trained: tuple[TrainedCode, Context]
) -> None:
    code, _ = trained
    crossed = crossing(halves, code, UNSEEN)
    sizes, same = [], []
    for keep, step in ((code.channels, 1), (code.channels, 2), (max(1, code.channels // 2), 2)):
        coarse = np.sign(crossed) * np.floor(np.abs(crossed) / step + 0.5) * step
        coarse[:, keep:] = 0
        sizes.append(entropy_bytes(coarse, 1))
        same.append(kept(halves, code, coarse.astype(np.float32), UNSEEN))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]
    assert same[0] >= max(same) - 0.02
    assert min(same) >= 0.7


def test_encoder_and_decoder_are_plain_models_for_any_batch(trained: tuple[TrainedCode, Context]) -> None:
    code, _ = trained
    for model, given, result in ((code.encoder, FEATURES, CODE), (code.decoder, CODE, FEATURES)):
        onnx.checker.check_model(model, full_check=True)
        assert [entry.name for entry in model.graph.input] == [given]
        assert [entry.name for entry in model.graph.output] == [result]
        assert not {node.domain for node in model.graph.node} - {""}
    for batch in (1, 5):
        x = np.zeros((batch, 12, SIDE, SIDE), np.float32)
        found = answers(code.encoder.SerializeToString(), x)
        assert found.shape[:2] == (batch, code.channels)
        assert answers(code.decoder.SerializeToString(), found).shape == x.shape


SHORT = Bottleneck(method="trained", epochs=4, channels=3, rate_weight=1e-3)


@pytest.fixture(scope="module")
def through(halves: Halves, tmp_path_factory: pytest.TempPathFactory) -> TrainedCode:
    """A short training that nothing interrupts."""
    given = context(halves, tmp_path_factory.mktemp("through"))
    return train_codes(halves.head_onnx, halves.tail_onnx, "cut", SHORT, given)


@pytest.mark.parametrize("stop_at", [0.1, 0.6, 0.99])
def test_an_interrupted_training_goes_on_and_ends_the_same(
    halves: Halves, through: TrainedCode, tmp_path: Path, stop_at: float
) -> None:
    broken = tmp_path / "broken"
    with pytest.raises(InterruptedError):
        train_codes(halves.head_onnx, halves.tail_onnx, "cut", SHORT, context(halves, broken, stop_at=stop_at))
    assert (broken / "course.safetensors").exists() == (stop_at > 0.25)
    seen: list[float] = []
    again = context(halves, broken)
    again.progress = lambda step, share: seen.append(share) if step.startswith("training") else None
    resumed = train_codes(halves.head_onnx, halves.tail_onnx, "cut", SHORT, again)
    assert seen[0] > stop_at - 0.25
    assert resumed.encoder.SerializeToString() == through.encoder.SerializeToString()
    assert resumed.decoder.SerializeToString() == through.decoder.SerializeToString()
    assert resumed.judged == through.judged


def test_what_another_training_left_in_the_folder_is_not_taken_up(halves: Halves, tmp_path: Path) -> None:
    train_codes(halves.head_onnx, halves.tail_onnx, "cut", SHORT, context(halves, tmp_path / "same"))
    other = SHORT.model_copy(update={"rate_weight": 1e-2})
    after = train_codes(halves.head_onnx, halves.tail_onnx, "cut", other, context(halves, tmp_path / "same"))
    fresh = train_codes(halves.head_onnx, halves.tail_onnx, "cut", other, context(halves, tmp_path / "fresh"))
    assert after.encoder.SerializeToString() == fresh.encoder.SerializeToString()


def test_a_damaged_state_starts_the_training_anew(halves: Halves, through: TrainedCode, tmp_path: Path) -> None:
    train_codes(halves.head_onnx, halves.tail_onnx, "cut", SHORT, context(halves, tmp_path))
    state = tmp_path / "course.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    again = train_codes(halves.head_onnx, halves.tail_onnx, "cut", SHORT, context(halves, tmp_path))
    assert again.encoder.SerializeToString() == through.encoder.SerializeToString()


def with_shrink(tail: bytes) -> bytes:
    """The same answers through an operator that has no gradient here."""
    model = onnx.load_model_from_string(tail)
    graph = model.graph
    last = next(entry for entry in graph.node if "logits" in entry.output)
    last.output[0] = "before"
    graph.node.append(onnx.helper.make_node("Shrink", ["before"], ["logits"], lambd=0.0, bias=0.0))
    return model.SerializeToString()


def test_a_tail_without_gradients_is_a_remark_and_its_features_are_taught(halves: Halves, tmp_path: Path) -> None:
    given = context(halves, tmp_path)
    step = Bottleneck(method="trained", epochs=16, channels=6, rate_weight=1e-5)
    code = train_codes(halves.head_onnx, with_shrink(halves.tail_onnx), "cut", step, given)
    (remark,) = given.remarks
    assert "features alone" in remark
    assert "Shrink" in remark
    assert kept(halves, code, crossing(halves, code, UNSEEN), UNSEEN) > 0.8


def test_a_budget_nobody_can_keep_is_a_remark_and_the_closest_code(halves: Halves, tmp_path: Path) -> None:
    given = context(halves, tmp_path, budget=Budget(max_disagreement=0.0))
    code = train_codes(
        halves.head_onnx, halves.tail_onnx, "cut", Bottleneck(method="trained", epochs=7, channels=1), given
    )
    gaps = [entry.gap.disagreement for entry in code.judged]
    if not any(entry.within for entry in code.judged):
        assert given.remarks
        assert given.figures["validation_disagreement"] == min(gap for gap in gaps if gap is not None)
    else:
        assert given.figures["validation_disagreement"] == 0


@pytest.mark.parametrize(
    ("shape", "code_shape"),
    [((12, 56, 56), (5, 14, 14)), ((12, 13, 17), (5, 7, 9)), ((12, 7, 7), (5, 7, 7)), ((9, 12), (9, 5)), ((12,), (5,))],
)
def test_codecs_fit_maps_tokens_and_vectors_of_any_size(shape: tuple[int, ...], code_shape: tuple[int, ...]) -> None:
    features = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)) * 4 + 1
    codec = make_codec(shape, 5, torch.ones(12), torch.full((12,), 4.0), False)
    codec.encoder.settle(features)
    code = codec.encoder(features)
    assert code.shape[1:] == code_shape
    assert codec.decoder(code).shape == features.shape
    flat = code.movedim(channel_axis(shape), 0).flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(flat.std(1), torch.full((5,), 2.0), atol=1e-3, rtol=0)
    silent = first_channels(rounded(code), 2, channel_axis(shape))
    given, back = export_encoder(codec.encoder, features), export_decoder(codec.decoder, rounded(code).detach())
    assert answers(given.SerializeToString(), features.numpy()).shape == code.shape
    assert answers(back.SerializeToString(), code.detach().numpy()[:1]).shape == (1, *shape)
    torch.testing.assert_close(
        narrowed(codec, 2).decoder(rounded(narrowed(codec, 2).encoder(features))), codec.decoder(silent)
    )


def test_only_large_features_are_made_smaller() -> None:
    assert [strides_for(shape) for shape in ((8, 56, 56), (8, 16, 16), (8, 7, 7), (49, 8), (8,))] == [
        (2, 2),
        (2, 1),
        (1, 1),
        (1, 1),
        (1, 1),
    ]


def test_a_coarse_step_rounds_halves_away_from_zero_and_stays_in_8_bits() -> None:
    values = torch.tensor([-200.0, -6.0, -2.0, -1.0, 0.4, 2.0, 6.0, 127.0])
    assert rounded(values, 4).tolist() == [-128.0, -8.0, -4.0, 0.0, 0.0, 4.0, 8.0, 127.0]
    assert rounded(values).tolist() == [-128.0, -6.0, -2.0, -1.0, 0.0, 2.0, 6.0, 127.0]


def test_the_prior_is_a_distribution_and_prices_what_is_rare_higher() -> None:
    torch.manual_seed(0)
    prior = Prior(3)
    grid = torch.arange(-400.0, 401.0).reshape(-1, 1).expand(-1, 3)
    with torch.no_grad():
        shares = 2 ** -prior.bits(grid, 1, 1)
        torch.testing.assert_close(shares.sum(0), torch.ones(3), atol=2e-3, rtol=0)
        near, far = prior.bits(torch.zeros(1, 3), 1, 1), prior.bits(torch.full((1, 3), 60.0), 1, 1)
        assert bool((far > near + 2).all())
        wide = prior.bits(torch.zeros(1, 3), 4, 1)
        assert bool((wide < near).all())


def test_copies_of_pictures_are_varied_and_the_validation_is_not(halves: Halves, tmp_path: Path) -> None:
    given = context(halves, tmp_path / "pictures")
    lesson = gather(halves.head_onnx, "cut", given)
    fit, validation = len(given.samples.fit), len(given.samples.validation)
    assert lesson.training == 6 * fit
    assert lesson.features.shape == (6 * fit + validation, 12, SIDE, SIDE)
    first = answers(halves.head_onnx, given.samples.calibration.feeds(given.samples.fit)["picture"])
    last = answers(halves.head_onnx, given.samples.calibration.feeds(given.samples.validation)["picture"])
    np.testing.assert_allclose(lesson.features[:fit], first, atol=2e-3)
    np.testing.assert_allclose(lesson.features[-validation:], last, atol=2e-3)
    assert np.abs(lesson.features[fit : 2 * fit].astype(np.float32) - first).mean() > 0.05
    tensors = gather(halves.head_onnx, "cut", context(halves, tmp_path / "tensors", as_tensors=True))
    assert tensors.training == fit


@pytest.mark.parametrize(
    ("tensor", "tail"), [("nowhere", lambda halves: halves.tail_onnx), ("cut", lambda halves: halves.whole_onnx)]
)
def test_a_cut_that_head_and_tail_do_not_share_is_refused(
    halves: Halves, tmp_path: Path, tensor: str, tail: Callable[[Halves], bytes]
) -> None:
    with pytest.raises(MeshError) as caught:
        train_codes(halves.head_onnx, tail(halves), tensor, SHORT, context(halves, tmp_path))
    assert caught.value.reason is Reason.CUT_INVALID
