"""Near duplicates: copies are found whatever was done to them, others are not, and no pair is told twice or forgotten."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from splitmesh.datasets import near
from splitmesh.datasets.freeze import freeze_items
from splitmesh.datasets.hashes import ClosePairs
from splitmesh.datasets.item import item_of
from splitmesh.datasets.manifest import Dataset
from splitmesh.datasets.near import Near, near_duplicates
from splitmesh.errors import MeshError, Reason
from tests.unit.dataset_items import digest_of, encoded, scene


class Pictures:
    """A dataset of pictures, by a group for each, and their bytes."""

    def __init__(self, *pictures: bytes, given: str = "") -> None:
        self.bytes = {digest_of(data): data for data in pictures}
        splits = {"a": "train", "e": "test"}
        items = [
            item_of(data, label="good", group=str(n), split=splits[given[n]] if given else None)
            for n, data in enumerate(pictures)
        ]
        self.dataset: Dataset = freeze_items(items, seed=1, shares={"train": 1})

    def read(self, digest: str) -> bytes:
        if digest not in self.bytes:
            raise MeshError(Reason.ARTIFACT_NOT_FOUND, "it stayed at its site")
        return self.bytes[digest]

    def near(self, **named: float) -> Near:
        return near_duplicates(self.dataset.entries, self.read, **named)  # type: ignore[arg-type]


def noisy(image: Image.Image) -> Image.Image:
    grain = np.random.default_rng(1).normal(0, 6, np.asarray(image).shape)
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "saved again": lambda image: encoded(image, "JPEG", quality=40),
    "halved": lambda image: encoded(image.resize((image.width // 2, image.height // 2))),
    "brighter": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.15), "WEBP"),
    "less contrast": lambda image: encoded(ImageEnhance.Contrast(image).enhance(0.7)),
    "noise": lambda image: encoded(noisy(image)),
    "in colour": lambda image: encoded(image.convert("RGB"), "BMP"),
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_found_among_others(kind: str) -> None:
    others = [encoded(scene(seed)) for seed in range(30)]
    copy = COPIES[kind](scene(7))
    (pair,) = Pictures(*others, copy).near().pairs
    assert {pair.one, pair.other} == {digest_of(copy), digest_of(others[7])}
    assert pair.one < pair.other
    assert pair.similarity > 0.985
    assert not pair.leak


def test_pictures_of_something_else_and_mirrored_ones_are_no_pairs() -> None:
    mirrored = [scene(seed).transpose(Image.Transpose.FLIP_LEFT_RIGHT) for seed in range(10)]
    found = Pictures(*(encoded(scene(seed)) for seed in range(40)), *(encoded(image) for image in mirrored)).near()
    assert found.pairs == ()
    assert (found.found, found.compared, found.left_out, found.complete) == (0, 50, 0, True)


def test_pairs_across_splits_come_first_and_are_counted() -> None:
    # The pairs that leak are the less similar ones, and all hashes of a pair are the same, so that no chunk tells them apart.
    forms = ["PNG", "BMP", "PNG", "WEBP", "PNG", "WEBP", "PNG", "BMP"]
    pictures = [
        encoded(scene(20 + n // 2), form, **({"quality": 100} if form == "WEBP" else {}))
        for n, form in enumerate(forms)
    ]
    found = Pictures(*pictures, given="aaaeaeaa").near()
    assert max(pair.similarity for pair in found.pairs[:2]) < min(pair.similarity for pair in found.pairs[2:])
    assert (found.found, found.leaks) == (4, 2)
    assert [pair.leak for pair in found.pairs] == [True, True, False, False]
    assert {"train", "test"} == set(found.pairs[0].splits)
    assert {pair.distance for pair in found.pairs} == {0}
    best = Pictures(*pictures, given="aaaeaeaa").near(max_pairs=1)
    assert best.pairs == found.pairs[:1]
    assert (best.found, best.leaks) == (4, 2)


def test_what_cannot_be_compared_is_told_and_stops_nothing() -> None:
    broken = encoded(scene(5), "JPEG")
    pictures = Pictures(encoded(scene(1)), encoded(scene(1), "JPEG"), encoded(Image.new("L", (50, 50), 90)), broken)
    pictures.bytes[digest_of(broken)] = broken[:-40]
    missing = digest_of(encoded(scene(1)))
    found = pictures.near()
    assert len(found.pairs) == 1
    assert list(found.undecodable) == [digest_of(broken)]
    assert found.flat == (digest_of(encoded(Image.new("L", (50, 50), 90))),)
    assert (found.compared, found.left_out) == (2, 2)
    del pictures.bytes[missing]
    assert pictures.near().undecodable[missing] == "it stayed at its site"


def test_other_errors_of_reading_are_not_swallowed() -> None:
    def read(digest: str) -> bytes:
        raise MeshError(Reason.SERVICE_UNAVAILABLE, "the folder is locked")

    with pytest.raises(MeshError, match="locked"):
        near_duplicates(Pictures(encoded(scene(1))).dataset.entries, read)


@pytest.mark.parametrize("named", [{"max_distance": 8}, {"max_distance": -1}, {"min_similarity": 1.5}])
def test_bounds_that_are_none_are_refused(named: dict[str, float]) -> None:
    with pytest.raises(MeshError) as error:
        Pictures(encoded(scene(1))).near(**named)
    assert error.value.reason is Reason.FIELD_INVALID


def test_no_pictures_have_no_pairs() -> None:
    assert near_duplicates([], lambda digest: b"").pairs == ()


def test_a_dataset_whose_pictures_all_look_alike_is_bounded_and_says_so() -> None:
    pictures = Pictures(*(encoded(scene(1), "JPEG", quality=60 + n) for n in range(30)))
    whole, part = pictures.near(), pictures.near(max_candidates=2000)
    assert whole.complete
    assert whole.found == 30 * 29 // 2
    assert not part.complete
    assert 0 < part.found < whole.found


def test_progress_is_told_for_each_picture() -> None:
    told: list[tuple[int, int]] = []
    pictures = Pictures(encoded(scene(1)), encoded(scene(2)))
    near_duplicates(pictures.dataset.entries, pictures.read, on_progress=lambda *at: told.append(at))
    assert told == [(1, 2), (2, 2)]


def hashes(count: int, seed: int, spread: int) -> NDArray[np.uint64]:
    """Few values with ``spread`` bits that differ, so that all distances occur, in every part."""
    random = np.random.default_rng(seed)
    found = random.integers(0, 1 << 63, 40, dtype=np.uint64)[random.integers(0, 40, count)]
    for _ in range(spread):
        found ^= np.uint64(1) << random.integers(0, 63, count).astype(np.uint64)
    return found


@pytest.mark.parametrize(("max_distance", "spread"), [(0, 1), (3, 2), (6, 5), (7, 6)])
def test_every_pair_within_the_distance_is_found_once(max_distance: int, spread: int) -> None:
    numbers = hashes(400, seed=spread, spread=spread)
    wanted = {
        (left, right): bits
        for left, right in itertools.combinations(range(400), 2)
        if (bits := int(numbers[left] ^ numbers[right]).bit_count()) <= max_distance
    }
    found = [
        ((int(left), int(right)), int(bits))
        for some in ClosePairs(numbers, max_distance, 1 << 40)
        for left, right, bits in zip(*some, strict=True)
    ]
    assert len(found) == len(wanted) > 20
    assert dict(found) == wanted


@pytest.mark.parametrize("most", [0, 500, 5000])
def test_no_more_candidates_than_allowed_are_looked_at(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0
    counted = np.bitwise_count

    def count(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
        nonlocal looked
        looked += values.size
        return counted(values)

    numbers = np.full(200, 77, dtype=np.uint64)
    search = ClosePairs(numbers, 0, most)
    monkeypatch.setattr(np, "bitwise_count", count)
    pairs = sum(len(left) for left, _, _ in search)
    assert not search.complete
    # One neighbour of each look-up is compared in any case; a pair's bits are counted once for each part before its own.
    assert looked <= 4 * max(most, 4 * 200)
    assert pairs < 200 * 199 // 2


def test_a_noisy_copy_has_a_near_hash_but_not_the_same() -> None:
    small = np.asarray(scene(3, width=near.SIDE, height=near.SIDE))
    other = np.clip(small.astype(int) + np.random.default_rng(0).integers(-25, 25, small.shape), 0, 255)
    bits = (near.phash(small) ^ near.phash(other.astype(np.uint8))).bit_count()
    assert 0 < bits <= near.DISTANCE
    assert near.phash(small) < 1 << 63


def test_a_picture_above_the_limit_of_pixels_is_left_out() -> None:
    pictures = Pictures(encoded(scene(1, width=300, height=300)), encoded(scene(1)))
    found = pictures.near(max_pixels=50_000)
    assert "at most 50000" in str(list(found.undecodable.values()))
    assert found.compared == 1


def shaded(image: Image.Image) -> Image.Image:
    """Much lighter towards the right: other low frequencies, the same details."""
    light = np.linspace(-70, 70, image.width)[None, :]
    return Image.fromarray(np.clip(np.asarray(image) + light, 0, 255).astype(np.uint8))


def test_the_rough_look_never_leaves_out_a_pair_that_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = [scene(seed) for seed in range(40)]
    pictures = Pictures(*(encoded(image) for image in (*scenes, *map(shaded, scenes), *map(noisy, scenes))))
    found = pictures.near(max_distance=7, min_similarity=0.7)
    monkeypatch.setattr(near._Looks, "possible", lambda self, left, right, least: np.ones(len(left), dtype=bool))
    assert found == pictures.near(max_distance=7, min_similarity=0.7)
    assert min(pair.similarity for pair in found.pairs) < 0.9, "some pairs must be near the bound, or nothing was tried"
