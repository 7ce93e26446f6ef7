"""Artefact names from a registry: only plain file names are believed, since whoever pulls makes files of them."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.client.registry_messages import version_from_message
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import ArtifactName


def _answer(name: str) -> pb.ModelVersion:
    return pb.ModelVersion(model="m", version=1, artifacts=[pb.Artifact(name=name, sha256="0" * 64, size_bytes=1)])


@pytest.mark.parametrize("name", ["head.onnx", "a", "Report_2.json", "x" * 128])
def test_a_plain_file_name_is_taken_by_client_and_manifest(name: str) -> None:
    assert version_from_message(_answer(name)).artifacts.keys() == {TypeAdapter(ArtifactName).validate_python(name)}


@pytest.mark.parametrize(
    "name", ["", "..", ".hidden", "../../etc/cron.d/x", "/etc/passwd", "a/b", "a\\b", "a\n", "a\0", "ü", "x" * 129]
)
def test_anything_else_is_a_violation_for_the_client_and_refused_by_the_manifest(name: str) -> None:
    with pytest.raises(MeshError) as caught:
        version_from_message(_answer(name))
    assert caught.value.reason is Reason.PROTOCOL_VIOLATION
    with pytest.raises(ValidationError):
        TypeAdapter(ArtifactName).validate_python(name)
