"""The decoder that rebuilds pictures: it learns what there is to learn, the same each time, from any shape of code."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="the measure trains: pip install splitmesh[train]")

from splitmesh.compress.train import leakage as training  # noqa: E402
from splitmesh.compress.train.decoder import Decoder  # noqa: E402
from splitmesh.compress.train.leakage import Rebuilt, rebuild  # noqa: E402
from splitmesh.model.picture_metrics import ssim  # noqa: E402
from tests.unit.leakage_versions import Heads, blobs  # noqa: E402

SIDE = 16
PICTURES = blobs(120, SIDE)
FIT, VALIDATION, HOLDOUT = np.arange(0, 80), np.arange(80, 90), np.arange(90, 120)


def planes(rows: NDArray[np.int64]) -> NDArray[np.float32]:
    return PICTURES[rows].transpose(0, 3, 1, 2).astype(np.float32)


def halved(rows: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    pictures = planes(rows)
    return [np.concatenate([pictures[:, :, a::2, b::2] for a in (0, 1) for b in (0, 1)], axis=1)]


def brightest(rows: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """Where the spot is, and nothing else."""
    flat = planes(rows).reshape(len(rows), -1)
    return [np.stack(np.unravel_index(flat.argmax(axis=1), (SIDE, SIDE)), axis=1).astype(np.float32)]


def nothing(rows: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """As much as a map, but of other things."""
    return [np.stack([np.random.default_rng(row).normal(size=(4, 4, 4)) for row in rows]).astype(np.float32)]


def attack(heads: Heads, *, steps: int = 100, seed: int = 0) -> Rebuilt:
    return rebuild(heads, PICTURES, FIT, VALIDATION, HOLDOUT, steps=steps, seed=seed)


def test_what_crosses_whole_is_rebuilt_what_crosses_not_is_not_and_a_little_in_between() -> None:
    much, some, none = attack(halved), attack(brightest), attack(nothing)
    assert much.ssim > 0.9
    assert much.ssim > some.ssim + 0.05 > none.ssim + 0.1
    # noise shows no more than the mean picture does
    assert none.ssim < none.baseline_ssim + 0.05
    assert some.ssim > some.baseline_ssim + 0.1
    assert much.psnr_db > some.psnr_db > none.psnr_db
    assert {much.baseline_ssim, some.baseline_ssim} == {none.baseline_ssim}
    assert (much.samples, much.fit_samples) == (30, 80)


def test_the_figures_are_those_of_the_pictures_handed_back_against_samples_never_seen() -> None:
    found = rebuild(halved, PICTURES, FIT, VALIDATION, HOLDOUT, steps=30, shown=30)
    assert found.shown.tolist() == HOLDOUT.tolist()
    assert found.ssim == pytest.approx(ssim(found.pictures, PICTURES[HOLDOUT]).mean())
    seen = set[int]()

    def watched(rows: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        seen.update(rows.tolist())
        return halved(rows)

    assert rebuild(watched, PICTURES, FIT, VALIDATION, HOLDOUT[:3], steps=10).samples == 3
    assert not seen & set(HOLDOUT[3:].tolist())


def test_the_same_seed_gives_the_same_figures_and_torch_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first, second, other = (attack(halved, steps=20, seed=seed) for seed in (1, 1, 2))
    assert (first.ssim, first.psnr_db) == (second.ssim, second.psnr_db)
    assert first.ssim != other.ssim
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_features_that_do_not_fit_into_memory_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = attack(halved, steps=20)
    monkeypatch.setattr(training, "MEMORY_BYTES", 1)
    calls = list[int]()

    def counted(rows: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        calls.append(len(rows))
        return halved(rows)

    again = attack(counted, steps=20)
    assert again.ssim == pytest.approx(kept.ssim, abs=1e-6)
    assert calls.count(training.BATCH) >= 20


def test_more_samples_than_needed_are_chosen_from(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most in (("MAX_FIT", 20), ("MAX_VALIDATION", 2), ("MAX_HOLDOUT", 7)):
        monkeypatch.setattr(training, name, most)
    found = attack(halved, steps=10)
    assert (found.fit_samples, found.samples) == (20, 7)
    assert set(found.shown.tolist()) <= set(HOLDOUT.tolist())


def test_progress_names_every_step_and_few_samples_suffice() -> None:
    done = list[int]()
    found = rebuild(halved, PICTURES, FIT[:1], FIT[:0], HOLDOUT[:1], steps=11, progress=done.append)
    assert done == list(range(1, 12))
    assert (found.fit_samples, found.samples) == (1, 1)


def test_training_judges_by_the_same_similarity() -> None:
    first, second = PICTURES[:4], PICTURES[4:8]
    pair = [torch.from_numpy(pictures.transpose(0, 3, 1, 2) / 255.0) for pictures in (first, second)]
    assert float(training._mean_ssim(*pair)) == pytest.approx(float(ssim(first, second).mean()), abs=1e-9)


@pytest.mark.parametrize(
    ("shapes", "picture"),
    [
        ([(8, 64, 64)], (1, 128, 128)),
        ([(3, 128, 128)], (3, 128, 128)),
        ([(2, 31, 40)], (3, 61, 80)),
        ([(16, 32, 32), (24, 16, 16), (10,)], (1, 128, 128)),
        ([(512, 7, 7)], (3, 224, 224)),
        ([(5, 1, 2)], (1, 9, 17)),
        ([(300,)], (3, 50, 30)),
        ([(20_000,)], (1, 64, 64)),
        ([(2, 4, 4)], (1, 1, 1)),
    ],
)
def test_any_shape_of_code_becomes_a_picture_that_starts_at_the_mean(
    shapes: Sequence[Sequence[int]], picture: tuple[int, int, int]
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mean = torch.rand(picture)
        decoder = Decoder(shapes, mean)
        codes = [torch.randn(2, *shape) for shape in shapes]
        made = decoder(codes)
    assert made.shape == (2, *picture)
    assert float((made - mean).detach().abs().mean()) < 0.25
    # every number that crosses has a say
    for code in codes:
        code.requires_grad_()
    decoder(codes).square().sum().backward()
    assert all(code.grad is not None and bool((code.grad != 0).any(dim=0).all()) for code in codes)
    assert sum(weight.numel() for weight in decoder.parameters()) < 25_000_000
