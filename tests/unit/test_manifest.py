"""The manifest: what it promises, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import MAX_MANIFEST_BYTES, Manifest, Quantisation, TensorInfo
from splitmesh.tensor import TensorSpec


def document() -> dict[str, Any]:
    """A complete manifest with a quantised cut and an exit."""
    image = {"name": "x", "dtype": "float32", "shape": [-1, 3, 8, 8]}
    cut = {"name": "b", "dtype": "float32", "shape": [-1, 8, 4, 4]}
    wire = {"name": "b_q", "dtype": "int8", "shape": [-1, 8, 4, 4]}
    logits = {"name": "y", "dtype": "float32", "shape": [-1, 2]}
    exit_output = {"name": "exit", "dtype": "float32", "shape": [-1, 2]}
    return {
        "schema_version": 1,
        "task": "classification",
        "labels": ["ok", "ng"],
        "preprocess": {"width": 8, "height": 8},
        "whole": {"artifact": "model.onnx", "inputs": [image], "outputs": [logits]},
        "split": {
            "cut": [cut],
            "wire": [wire],
            "head": {"artifact": "head.onnx", "inputs": [image], "outputs": [wire, exit_output]},
            "tail": {"artifact": "tail.onnx", "inputs": [wire], "outputs": [logits]},
            "quantisation": [{"tensor": "b", "wire_tensor": "b_q", "dtype": "int8", "scale": [0.1], "zero_point": [0]}],
            "verification": {"inputs": 8, "batch_sizes": [1, 3], "max_abs_error": 0.01, "top1_agreement": 1.0},
        },
        "exit": {
            "output": "exit",
            "temperature": 1.5,
            "fit_samples": 100,
            "holdout_samples": 50,
            "holdout_agreement": 0.98,
        },
    }


def test_a_manifest_survives_a_round_trip() -> None:
    manifest = Manifest.from_json(json.dumps(document()))
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert Manifest.from_json(manifest.to_json()).to_json() == manifest.to_json()


def test_a_manifest_cannot_be_changed() -> None:
    manifest = Manifest.from_json(json.dumps(document()))
    with pytest.raises(ValidationError):
        manifest.task = "raw"  # type: ignore[misc]


def test_tensor_information_and_specification_are_the_same_thing() -> None:
    spec = TensorSpec("t", "int8", (-1, 4))
    assert TensorInfo.of(spec).spec() == spec


BREAKS = {
    "an unknown field": ("surprise", 1),
    "a newer schema": ("schema_version", 2),
    "an unknown task": ("task", "detection"),
    "one label": ("labels", ["ok"]),
    "equal labels": ("labels", ["ok", "ok"]),
    "more labels than classes": ("labels", ["a", "b", "c"]),
    "labels on a raw task": ("task", "raw"),
    "an exit without a split": ("split", None),
    "a head output nobody needs": ("exit", None),
    "an exit the head does not produce": ("exit.output", "other"),
    "a temperature of zero": ("exit.temperature", 0),
    "an agreement above one": ("exit.holdout_agreement", 1.1),
    "a path for an artefact": ("whole.artifact", "../model.onnx"),
    "a hidden file for an artefact": ("whole.artifact", ".model"),
    "an artefact name with a line break": ("whole.artifact", "model.onnx\n"),
    "segments that share an artefact": ("split.tail.artifact", "head.onnx"),
    "an unknown element type": ("whole.inputs.0.dtype", "bfloat16"),
    "a dimension of zero": ("whole.inputs.0.shape", [0, 3]),
    "a tail that takes something else": ("split.tail.inputs.0.name", "c"),
    "a head that takes another input": ("split.head.inputs.0.name", "image"),
    "a tail with another output": ("split.tail.outputs.0.name", "z"),
    "a quantised tensor that does not cross": ("split.quantisation.0.wire_tensor", "b"),
    "a quantised tensor of another type": ("split.quantisation.0.dtype", "uint8"),
    "a zero point out of range": ("split.quantisation.0.zero_point", [200]),
    "more scales than zero points": ("split.quantisation.0.scale", [0.1, 0.2]),
    "a scale of zero": ("split.quantisation.0.scale", [0.0]),
    "a verification of nothing": ("split.verification.inputs", 0),
    "an infinite error": ("split.verification.max_abs_error", float("inf")),
}


@pytest.mark.parametrize("break_", BREAKS.values(), ids=BREAKS.keys())
def test_a_manifest_is_refused_for(break_: tuple[str, object]) -> None:
    refuse(document(), break_)


def refuse(broken: Any, break_: tuple[str, object]) -> None:
    path, replacement = break_
    broken = json.loads(json.dumps(broken))
    *parents, last = path.split(".")
    target = broken
    for part in parents:
        target = target[int(part)] if part.isdigit() else target[part]
    target[last] = replacement
    with pytest.raises(MeshError) as caught:
        Manifest.from_json(json.dumps(broken))
    assert caught.value.reason is Reason.MODEL_CORRUPT


def chain_document() -> dict[str, Any]:
    """The same model as three segments, the second hop not rounded."""
    whole = document()
    second = {"name": "c", "dtype": "float32", "shape": [-1, 16]}
    split = whole["split"]
    split["middle"] = [
        {
            "segment": {"artifact": "segment_1.onnx", "inputs": split["wire"], "outputs": [second]},
            "cut": [second],
            "wire": [second],
        }
    ]
    split["tail"] = {"artifact": "tail.onnx", "inputs": [second], "outputs": split["tail"]["outputs"]}
    return whole


def test_a_chain_names_its_segments_and_hops_in_order() -> None:
    manifest = Manifest.from_json(json.dumps(chain_document()))
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.split is not None
    assert [segment.artifact for segment in manifest.segments()] == [
        "model.onnx", "head.onnx", "segment_1.onnx", "tail.onnx",
    ]  # fmt: skip
    assert [segment.artifact for segment in manifest.split.segments()] == ["head.onnx", "segment_1.onnx", "tail.onnx"]
    assert [[tensor.name for tensor in hop.wire] for hop in manifest.split.hops()] == [["b_q"], ["c"]]


def test_a_model_cut_in_two_is_written_without_a_middle() -> None:
    manifest = Manifest.from_json(json.dumps(document()))
    assert manifest.split is not None
    assert manifest.split.middle == ()
    assert "middle" not in json.loads(manifest.to_json())["split"]


def test_rounding_a_chain_changes_both_ends_of_every_hop() -> None:
    plain = chain_document()
    cut = plain["split"]["cut"]
    plain["split"] |= {"wire": cut, "quantisation": []}
    plain["split"]["head"]["outputs"] = [*cut, plain["split"]["head"]["outputs"][1]]
    plain["split"]["middle"][0]["segment"]["inputs"] = cut
    manifest = Manifest.from_json(json.dumps(plain))
    assert manifest.split is not None
    rules = tuple(
        (Quantisation(tensor=name, wire_tensor=f"{name}_q", dtype="uint8", scale=(0.5,), zero_point=(3,)),)
        for name in ("b", "c")
    )
    exit_output = manifest.split.head.outputs[-1]
    rounded = manifest.model_copy(update={"split": manifest.split.rounded(rules, exit_output)})
    again = Manifest.from_json(rounded.to_json())
    assert again.split is not None
    assert [[tensor.name for tensor in hop.wire] for hop in again.split.hops()] == [["b_q"], ["c_q"]]
    assert [hop.quantisation for hop in again.split.hops()] == list(rules)


CHAIN_BREAKS = {
    "a middle that takes something else": ("split.middle.0.segment.inputs.0.name", "b"),
    "a middle that gives something else": ("split.middle.0.segment.outputs.0.name", "d"),
    "a tail that takes the head's features": ("split.tail.inputs.0.name", "b_q"),
    "a middle with an output of its own": (
        "split.middle.0.segment.outputs",
        [{"name": name, "dtype": "float32", "shape": [-1, 16]} for name in ("c", "d")],
    ),
    "a middle that shares an artefact": ("split.middle.0.segment.artifact", "tail.onnx"),
    "a middle whose rounded tensor does not cross": (
        "split.middle.0.quantisation",
        [{"tensor": "c", "wire_tensor": "c_q", "dtype": "uint8", "scale": [1.0], "zero_point": [0]}],
    ),
    "a middle without a cut": ("split.middle.0.cut", []),
}


@pytest.mark.parametrize("break_", CHAIN_BREAKS.values(), ids=CHAIN_BREAKS.keys())
def test_a_chain_is_refused_for(break_: tuple[str, object]) -> None:
    refuse(chain_document(), break_)


def staged() -> dict[str, Any]:
    """The same head once more in two pieces, with an exit behind the first."""
    made = document()
    early = {"name": "a", "dtype": "float32", "shape": [-1, 4, 8, 8]}
    first = {"name": "exit_1", "dtype": "float32", "shape": [-1, 2]}
    image, (wire, at_cut) = made["whole"]["inputs"][0], made["split"]["head"]["outputs"]
    made["split"]["head"]["outputs"].append(first)
    made["earlier_exits"] = [{**made["exit"], "output": "exit_1"}]
    made["stages"] = [
        {"artifact": "head_1.onnx", "inputs": [image], "outputs": [early, first]},
        {"artifact": "head_2.onnx", "inputs": [early], "outputs": [wire, at_cut]},
    ]
    return made


def test_stages_are_artefacts_and_survive_a_round_trip() -> None:
    manifest = Manifest.from_json(json.dumps(staged()))
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.artifacts()[-2:] == ("head_1.onnx", "head_2.onnx")
    assert [entry.output for entry in manifest.exits()] == ["exit_1", "exit"]


def test_stages_that_do_not_lead_to_the_cut_are_refused() -> None:
    nothing_to_take, nothing_to_send, no_exit = staged(), staged(), staged()
    nothing_to_take["stages"][1]["inputs"][0] = {"name": "b", "dtype": "float32", "shape": [-1, 8, 4, 4]}
    nothing_to_send["stages"][1]["outputs"].pop(0)
    no_exit["stages"][0]["outputs"].pop()
    for broken, message in (
        (nothing_to_take, "takes ['b'], which nothing before it gives"),
        (nothing_to_send, "do not give ['b_q'], which cross"),
        (no_exit, "does not give its exit's outputs ['exit_1']"),
    ):
        with pytest.raises(MeshError) as caught:
            Manifest.from_json(json.dumps(broken))
        assert message in caught.value.message


def test_what_a_classifier_has_no_use_for_is_not_written_so_that_older_heads_go_on_reading() -> None:
    written = json.loads(Manifest.from_json(json.dumps(document())).to_json())
    assert written["exit"].keys() == document()["exit"].keys()
    assert not {"earlier_exits", "stages", "leakage"} & written.keys()
    assert not {"middle", "bottleneck", "coding"} & written["split"].keys()


def test_a_detectors_finding_is_written_and_shows_in_an_output_of_the_model() -> None:
    made = {**document(), "task": "raw", "labels": []}
    made["exit"]["finding"] = {"output": "y", "min_score": 0.5}
    manifest = Manifest.from_json(json.dumps(made))
    assert json.loads(manifest.to_json())["exit"]["finding"] == {"output": "y", "min_score": 0.5}
    made["exit"]["finding"]["output"] = "z"
    with pytest.raises(MeshError, match="'z', which the model does not give"):
        Manifest.from_json(json.dumps(made))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_text_that_is_no_manifest_is_refused(text: bytes) -> None:
    with pytest.raises(MeshError) as caught:
        Manifest.from_json(text)
    assert caught.value.reason is Reason.MODEL_CORRUPT


def test_a_manifest_of_unreasonable_size_is_not_read() -> None:
    with pytest.raises(MeshError, match="more than"):
        Manifest.from_json(b" " * (MAX_MANIFEST_BYTES + 1))


def test_reading_a_manifest_and_running_a_segment_needs_neither_onnx_nor_torch() -> None:
    script = (
        "import sys; import splitmesh.model.manifest, splitmesh.runtime;"
        "sys.exit(' '.join(m for m in ('onnx', 'torch', 'grpc') if m in sys.modules) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert result.stderr.strip() == ""
    assert result.returncode == 0
