"""Our copy of the Open Inference Protocol against the one that NVIDIA's tritonclient was built with."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from splitmesh.api.oip.v2 import grpc_service_pb2, model_config_pb2
from splitmesh.testing.parts import find_tritonclient, require_part

SCRIPT = Path(__file__).parents[1] / "support" / "triton_script.py"
FILES = ("model_config", "grpc_service")


def _ours() -> list[FileDescriptorProto]:
    return [
        FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
        for module in (model_config_pb2, grpc_service_pb2)
    ]


@pytest.fixture(scope="module")
def theirs() -> list[FileDescriptorProto]:
    python = find_tritonclient()
    require_part("tritonclient", python is not None)
    ended = subprocess.run([str(python), str(SCRIPT), "descriptors"], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return [FileDescriptorProto.FromString(base64.b64decode(text)) for text in json.loads(ended.stdout)]


def messages(file: FileDescriptorProto) -> dict[str, DescriptorProto]:
    def inside(prefix: str, message: DescriptorProto) -> Iterator[tuple[str, DescriptorProto]]:
        yield prefix + message.name, message
        for nested in message.nested_type:
            yield from inside(f"{prefix}{message.name}.", nested)

    return dict(found for message in file.message_type for found in inside("", message))


def enums(file: FileDescriptorProto) -> dict[str, EnumDescriptorProto]:
    found = {enum.name: enum for enum in file.enum_type}
    for name, message in messages(file).items():
        found |= {f"{name}.{enum.name}": enum for enum in message.enum_type}
    return found


def on_the_wire(message: DescriptorProto, field: FieldDescriptorProto) -> tuple[object, ...]:
    oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
    return field.name, field.type, field.type_name, field.label, oneof


def fields(message: DescriptorProto) -> dict[int, tuple[object, ...]]:
    return {field.number: on_the_wire(message, field) for field in message.field}


@pytest.mark.parametrize("place", range(len(FILES)), ids=FILES)
def test_every_message_and_enum_of_ours_is_theirs(theirs: list[FileDescriptorProto], place: int) -> None:
    ours, public = messages(_ours()[place]), messages(theirs[place])
    assert ours
    for name, message in ours.items():
        assert fields(message).items() <= fields(public[name]).items(), name
    for name, enum in enums(_ours()[place]).items():
        values = {value.name: value.number for value in enum.value}
        assert values == {value.name: value.number for value in enums(theirs[place])[name].value}, name


def test_nothing_of_the_service_is_left_out(theirs: list[FileDescriptorProto]) -> None:
    ours, public = _ours()[1], theirs[1]
    assert ours.package == public.package == "inference"
    assert messages(ours).keys() == messages(public).keys()
    for name, message in messages(public).items():
        assert fields(messages(ours)[name]) == fields(message), name
    (service,), (known,) = ours.service, public.service
    assert service.name == known.name
    calls = [
        (rpc.name, rpc.input_type, rpc.output_type, rpc.client_streaming, rpc.server_streaming)
        for rpc in service.method
    ]
    assert sorted(calls) == sorted(
        (rpc.name, rpc.input_type, rpc.output_type, rpc.client_streaming, rpc.server_streaming) for rpc in known.method
    )
