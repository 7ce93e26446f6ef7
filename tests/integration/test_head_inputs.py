"""A model of two inputs from a gateway through a real head and a real tail; the second input is part of the cut."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from splitmesh.client import AnsweredBy, Mesh, MeshError, Reason
from splitmesh.model.artifacts import split_bytes
from splitmesh.model.manifest import MANIFEST
from splitmesh.runtime import open_session
from tests.integration.command_line import splitmesh
from tests.support.worlds import World, world
from tests.unit.onnx_nets import siamese

PAIR = {
    "left": np.asarray([[1.0, -2, 3, 0.5]], dtype=np.float32),
    "right": np.asarray([[0.3, 0.2, -1, 2]], dtype=np.float32),
}


@pytest.fixture
async def edge(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    async with world(tmp_path, registered) as made:
        manifest, artifacts = split_bytes(siamese().SerializeToString(), ["left_code", "right"])
        parts = {**artifacts, MANIFEST: manifest.to_json().encode()}
        version = await made.registry.create_version("pair", parts, created_by="test")
        await made.registry.set_alias("pair", "production", version.version)
        await made.start("tail")
        await made.start("head", models="pair")
        yield made


@pytest.fixture
async def mesh(edge: World) -> Mesh:
    return await edge.ready_mesh()


async def test_two_inputs_are_answered_by_the_tail_as_the_whole_model_would(mesh: Mesh) -> None:
    answer = await mesh.infer(PAIR)
    expected = open_session(siamese().SerializeToString()).run(PAIR)["score"]
    assert answer.answered_by is AnsweredBy.CLOUD_TAIL
    assert answer.cut == ("left_code", "right")
    np.testing.assert_allclose(answer.outputs["score"], expected, rtol=1e-5)


async def test_inputs_swapped_give_another_answer(mesh: Mesh) -> None:
    straight = (await mesh.infer(PAIR)).outputs["score"]
    swapped = (await mesh.infer({"left": PAIR["right"], "right": PAIR["left"]})).outputs["score"]
    np.testing.assert_allclose(swapped, -straight, rtol=1e-5)


async def test_a_missing_input_is_refused_by_name_and_the_next_frame_is_answered(mesh: Mesh) -> None:
    with pytest.raises(MeshError) as caught:
        await mesh.infer({"left": PAIR["left"]})
    assert caught.value.reason is Reason.FIELD_INVALID
    assert "'right'" in caught.value.message
    assert (await mesh.infer(PAIR)).answered_by is AnsweredBy.CLOUD_TAIL


async def test_inputs_above_the_limit_are_refused_before_they_are_sent(edge: World) -> None:
    small = await edge.mesh(max_frame_bytes=31)
    with pytest.raises(MeshError) as caught:
        await small.infer(PAIR)
    assert caught.value.reason is Reason.FRAME_TOO_LARGE


async def test_the_command_line_sends_inputs_from_a_file(edge: World, mesh: Mesh, tmp_path: Path) -> None:
    file = tmp_path / "pair.safetensors"
    file.write_bytes(save(PAIR))
    asked = await splitmesh("infer", "--inputs", file, "--head", edge.addresses["head"], "--json")
    assert asked.json["answered_by"] == "CLOUD_TAIL"
    shown = await splitmesh("infer", "--inputs", file, "--head", edge.addresses["head"])
    assert "score: float32 [1, 3]" in shown.out


async def test_the_command_line_refuses_both_and_neither_and_what_is_no_such_file(tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(b"no tensors")
    for arguments in ((), (file, "--inputs", file), ("--inputs", file)):
        ended = await splitmesh("infer", *arguments, "--head", "127.0.0.1:1")
        assert ended.code == 1
        assert "FIELD_INVALID" in ended.err
