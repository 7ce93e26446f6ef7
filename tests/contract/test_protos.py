"""The contracts against what is made from them: stubs, lint, enums, tables of the kernel, and a method behind every RPC."""

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FileDescriptor, MethodDescriptor, ServiceDescriptor
from google.rpc import status_pb2
from grpc_tools import protoc

from splitmesh.api.tensor.v1 import tensor_pb2
from splitmesh.kernel.tensors import CODEC_VALUES, DATA_TYPES
from splitmesh.tensor import DTYPES, TensorSpec, codecs, pack, unpack
from splitmesh.tensor.entropy import RangeCodec, Tables
from splitmesh.testing.parts import find_buf, require_part

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"
FILES = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
TOOL_TIMEOUT_S = 60


def _stubs(file: str) -> ModuleType:
    return importlib.import_module(file.removesuffix(".proto").replace("/", ".") + "_pb2")


def _descriptor(file: str) -> FileDescriptor:
    descriptor: FileDescriptor = _stubs(file).DESCRIPTOR
    return descriptor


def _enums(file: FileDescriptor) -> Iterator[EnumDescriptor]:
    def inside(message: Descriptor) -> Iterator[EnumDescriptor]:
        yield from message.enum_types
        for nested in message.nested_types:
            yield from inside(nested)

    yield from file.enum_types_by_name.values()
    for message in file.message_types_by_name.values():
        yield from inside(message)


OURS = [file for file in FILES if "/oip/" not in file]
"""Without the Open Inference Protocol, whose names are others'."""
ENUMS = [enum for file in OURS for enum in _enums(_descriptor(file))]
SERVICES = [service for file in FILES for service in _descriptor(file).services_by_name.values()]
RPCS = [rpc for service in SERVICES for rpc in service.methods]


def test_the_contracts_are_found() -> None:
    assert len(FILES) == 14
    assert len(OURS) == 12
    assert {service.name for service in SERVICES} >= {"InferenceService", "SegmentService", "GRPCInferenceService"}


def test_the_committed_stubs_are_those_of_the_protos() -> None:
    command = [sys.executable, "tools/generate_stubs.py", "--check"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S)
    assert ended.returncode == 0, ended.stderr


def _lint(protos: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """`buf lint` on an image of the protos: buf itself would look for imports it has no module for."""
    buf = find_buf()
    require_part("buf", buf is not None)
    includes = [protos, Path(protoc.__file__).parent / "_proto", Path(status_pb2.__file__).parents[2]]
    image = folder / "image.binpb"
    arguments = ["protoc", *(f"-I{include}" for include in includes), "--include_imports", "--include_source_info"]
    assert protoc.main([*arguments, f"--descriptor_set_out={image}", *FILES]) == 0
    command = [str(buf), "lint", str(image), "--config", str(PROTOS / "buf.yaml")]
    return subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S)


def test_buf_finds_nothing_to_mend(tmp_path: Path) -> None:
    ended = _lint(PROTOS, tmp_path)
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr


def test_buf_would_find_an_element_without_a_comment(tmp_path: Path) -> None:
    for file in FILES:
        copy = tmp_path / "protos" / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text((PROTOS / file).read_text())
    with (tmp_path / "protos" / FILES[0]).open("a") as first:
        first.write("\nmessage Uncommented {}\n")
    ended = _lint(tmp_path / "protos", tmp_path)
    assert ended.returncode != 0
    assert "Uncommented" in ended.stdout


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.full_name)
def test_an_enum_that_was_not_set_says_so(enum: EnumDescriptor) -> None:
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper()
    assert enum.values_by_number[0].name == f"{prefix}_UNSPECIFIED"
    assert all(value.name.startswith(f"{prefix}_") for value in enum.values)


def test_every_element_type_of_the_contract_is_in_the_kernels_table() -> None:
    numbers = set(tensor_pb2.DataType.values()) - {tensor_pb2.DATA_TYPE_UNSPECIFIED}
    assert set(DATA_TYPES.values()) == numbers
    assert len(DATA_TYPES) == len(numbers)
    assert DATA_TYPES.keys() == set(DTYPES)


def test_every_codec_of_the_contract_is_in_the_kernels_table_and_can_code() -> None:
    numbers = set(tensor_pb2.Codec.values()) - {tensor_pb2.CODEC_UNSPECIFIED}
    assert set(CODEC_VALUES.values()) == numbers
    assert len(CODEC_VALUES) == len(numbers)
    assert CODEC_VALUES.keys() == codecs.CODECS.keys() | codecs.OF_A_VERSION
    assert not codecs.CODECS.keys() & codecs.OF_A_VERSION
    sample = np.random.default_rng(0).integers(90, 110, (1, 3, 4), np.uint8)
    tables = Tables.build([sample], [np.array([100], np.uint8)], [(3, 1)])
    own: dict[str, codecs.Codec] = {codecs.RANGE: RangeCodec(tables, [TensorSpec("t", "uint8", (-1, 3, 4))])}
    assert own.keys() == codecs.OF_A_VERSION
    for name in CODEC_VALUES:
        (back,) = unpack(pack([("t", sample)], own.get(name, name)), codecs=own)
        assert np.array_equal(back, sample)


def _servicer_classes() -> dict[str, type]:
    """Every servicer of the apps, and the one that several share, by the name of the generated class it extends."""
    found: dict[str, type] = {}
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted(path for app in ("services", "edge", "cloud") for path in (ROOT / app).rglob("*servicer.py"))
    ]
    for module in map(importlib.import_module, [*names, "splitmesh.oip.servicer"]):
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__ == module.__name__:
                found |= {base.__name__: kind for base in kind.__mro__ if base.__module__.endswith("_pb2_grpc")}
    return found


SERVICERS = _servicer_classes()


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.full_name)
def test_every_service_has_an_app_that_serves_it(service: ServiceDescriptor) -> None:
    assert f"{service.name}Servicer" in SERVICERS


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: f"{rpc.containing_service.name}.{rpc.name}")
def test_every_rpc_has_a_method_of_its_kind(rpc: MethodDescriptor) -> None:
    servicer = SERVICERS[f"{rpc.containing_service.name}Servicer"]
    ours = [cls for cls in servicer.__mro__ if not cls.__module__.startswith("splitmesh.api.")]
    method = next((cls.__dict__[rpc.name] for cls in ours if rpc.name in cls.__dict__), None)
    assert method is not None, f"{servicer.__qualname__} leaves {rpc.name} to the generated class: UNIMPLEMENTED"
    # A stream is yielded, or written to the context.
    yields = rpc.server_streaming and inspect.isasyncgenfunction(method)
    assert yields or inspect.iscoroutinefunction(method)
