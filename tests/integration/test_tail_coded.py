"""A tail whose version has entropy tables: frames coded with them, frames that are not, and what is neither."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from splitmesh.errors import Reason
from splitmesh.model.manifest import MANIFEST, TABLES, Manifest
from splitmesh.tensor import Codec, Frame, pack
from splitmesh.tensor.entropy import RangeCodec, Tables
from splitmesh.tensor.spec import Array
from tests.support.coded import WIRE, Coded, coded_version
from tests.support.models import CUT, features
from tests.support.wire import frame_error, frame_messages, opening_error, run_stream, scores, send
from tests.support.worlds import MODEL, World, world

CODED = "coded"
DAMAGED = "damaged"
OTHER_RATES = "other-rates"
RATES = [(2, 1), (2, 8), (1, 16)]
BRIGHTNESS = np.linspace(0.02, 0.98, 25)


def image(brightness: float) -> Array:
    return features(brightness)[:, :1]


def codes_of(coded: Coded, brightness: float) -> Array:
    return coded.codes(image(brightness))


def frame_of(codes: Array, codec: str | Codec) -> Frame:
    return pack([(WIRE, codes)], codec)


@pytest.fixture(scope="module")
def coded() -> Coded:
    return coded_version(np.concatenate([image(value) for value in BRIGHTNESS]), RATES)


@pytest.fixture
async def cloud(tmp_path: Path, registered: Path, coded: Coded) -> AsyncIterator[World]:
    async with world(tmp_path, registered) as made:
        await made.registry.create_version(CODED, coded.artifacts, created_by="push")
        spoilt = bytearray(coded.artifacts[TABLES])
        spoilt[-1] ^= 1
        damaged = {**coded.artifacts, TABLES: bytes(spoilt)}
        await made.registry.create_version(DAMAGED, damaged, created_by="push")
        other = {**coded.artifacts, MANIFEST: _with_fewer_rates(coded.artifacts[MANIFEST])}
        await made.registry.create_version(OTHER_RATES, other, created_by="push")
        yield made


@pytest.fixture
async def tail(cloud: World) -> str:
    return (await cloud.start("tail")).address


@pytest.mark.parametrize("rate", range(len(RATES)))
async def test_a_coded_frame_is_answered_as_if_its_coarse_values_had_come(tail: str, coded: Coded, rate: int) -> None:
    for brightness in (0.1, 0.5, 0.9):
        codes = codes_of(coded, brightness)
        async with run_stream(tail, CODED) as raw:
            await send(raw, frame_messages(frame_of(codes, coded.codec.at(rate))))
            answered = scores(await raw.read())
        (coarse,) = coded.codec.coarse([codes], rate)
        assert np.array_equal(answered, coded.tail_scores(coarse))
        if rate == 0:
            assert np.array_equal(coarse, codes)


async def test_rates_and_codecs_are_mixed_on_one_stream(tail: str, coded: Coded) -> None:
    codes = codes_of(coded, 0.5)
    kinds: list[str | Codec] = ["zstd", coded.codec, coded.codec.at(2), "identity", coded.codec.at(1)]
    async with run_stream(tail, CODED) as raw:
        for frame_id, kind in enumerate(kinds):
            await send(raw, frame_messages(frame_of(codes, kind), frame_id))
        answers = {}
        for _ in kinds:
            answer = await raw.read()
            answers[answer.result.frame_id] = scores(answer)
    assert all(np.array_equal(answers[0], answers[same]) for same in (1, 3))
    for frame_id, rate in ((2, 2), (4, 1)):
        assert np.allclose(answers[frame_id], coded.tail_scores(coded.codec.coarse([codes], rate)[0]), atol=1e-5)


async def test_a_payload_that_is_damaged_or_of_other_tables_is_refused_and_the_stream_goes_on(
    tail: str, coded: Coded
) -> None:
    codes = codes_of(coded, 0.5)
    good = frame_of(codes, coded.codec)
    other = Tables.build([codes.astype(np.uint8)], [np.array([1, 1], np.uint8)], RATES)
    stranger = frame_of(codes, RangeCodec(other, good.header.tensors))
    payload = bytes(good.payload)
    bad = [bytes([9]) + payload[1:], payload[:-1], payload + b"\1", bytes([1]) + payload[1:], payload[:3], b""]
    frames = [stranger, *(_resealed(good, data) for data in bad)]
    async with run_stream(tail, CODED) as raw:
        for frame_id, frame in enumerate(frames):
            await send(raw, frame_messages(frame, frame_id))
            refused, error = frame_error(await raw.read())
            assert (refused, error.reason) == (frame_id, Reason.PAYLOAD_CORRUPT)
        await send(raw, frame_messages(good, 99))
        assert np.array_equal(scores(await raw.read()), coded.tail_scores(codes))


def _resealed(frame: Frame, payload: bytes) -> Frame:
    """With a header that fits the damaged payload, so that only the codec can notice."""
    packed = pack([("x", np.frombuffer(payload or b"\0", np.uint8))], "identity").header
    crc32c = packed.crc32c if payload else 0
    header = type(frame.header)(frame.header.tensors, frame.header.codec, len(payload), 0, crc32c)
    return Frame(header, payload)


async def test_a_version_without_tables_refuses_a_coded_frame_and_the_stream_goes_on(tail: str, coded: Coded) -> None:
    async with run_stream(tail, MODEL) as raw:
        tensors = [(CUT, features(0.5))]
        await send(raw, frame_messages(pack(tensors, "zstd"), 1, codec=3))
        refused, error = frame_error(await raw.read())
        assert (refused, error.reason) == (1, Reason.CODEC_UNSUPPORTED)
        await send(raw, frame_messages(pack(tensors, "zstd"), 2))
        assert (await raw.read()).result.frame_id == 2


async def test_a_version_whose_tables_are_damaged_is_not_accepted(tail: str) -> None:
    assert (await opening_error(tail, DAMAGED, 1)).reason is Reason.MODEL_CORRUPT


async def test_tables_for_other_rates_than_the_manifest_names_are_not_accepted(tail: str) -> None:
    error = await opening_error(tail, OTHER_RATES, 1)
    assert error.reason is Reason.MODEL_CORRUPT
    assert "the manifest names" in error.message


def _with_fewer_rates(content: bytes) -> bytes:
    manifest = Manifest.from_json(content)
    assert manifest.split is not None
    assert manifest.split.coding is not None
    coding = manifest.split.coding.model_copy(update={"rates": manifest.split.coding.rates[:2]})
    split = manifest.split.model_copy(update={"coding": coding})
    return manifest.model_copy(update={"split": split}).to_json().encode()


async def test_a_restarted_tail_has_the_tables_with_the_registry_gone(cloud: World, coded: Coded) -> None:
    codes = codes_of(coded, 0.5)
    first = await cloud.start("tail")
    async with run_stream(first.address, CODED):
        pass
    await cloud.stop("tail")
    await cloud.stop("registry")
    again = await cloud.start("tail")
    async with run_stream(again.address, CODED) as raw:
        await send(raw, frame_messages(frame_of(codes, coded.codec)))
        assert np.array_equal(scores(await raw.read()), coded.tail_scores(codes))
