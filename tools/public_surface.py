"""What users build on, as text: ``python tools/public_surface.py`` prints it, ``--write`` makes it the agreed one.

The names, signatures and fields of ``splitmesh.client``, the reasons of errors, and every field of the messages that gateways and
nodes exchange. ``tests/contract/test_public_surface.py`` holds the code to the file; a line that goes or changes breaks users.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import get_args

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor

import splitmesh.client
from splitmesh.api.inference.v1 import inference_pb2
from splitmesh.api.segment.v1 import segment_pb2
from splitmesh.api.tensor.v1 import tensor_pb2
from splitmesh.client.stream import Drop, Order

SNAPSHOT = Path(__file__).parents[1] / "tests" / "contract" / "public_surface.txt"
FILES: tuple[FileDescriptor, ...] = (inference_pb2.DESCRIPTOR, segment_pb2.DESCRIPTOR, tensor_pb2.DESCRIPTOR)
MADE_BY_OTHERS = frozenset({"Stream", "SyncStream"})
"""Classes that users do not make themselves: how they are made may change."""
PROTOCOLS = frozenset({"__aenter__", "__aexit__", "__aiter__", "__anext__", "__enter__", "__exit__", "__iter__"})
"""Methods behind a statement of Python that users write."""
ALIASES = {"Drop": Drop, "Order": Order}
"""Names that signatures use."""
_TYPES = {
    getattr(FieldDescriptor, name): name.removeprefix("TYPE_").lower()
    for name in vars(FieldDescriptor)
    if name.startswith("TYPE_")
}


def surface() -> list[str]:
    """One line for each thing that users build on."""
    lines = [line for name in sorted(splitmesh.client.__all__) for line in _of_name(name)]
    lines += [f"{name} = {' | '.join(map(repr, get_args(alias)))}" for name, alias in ALIASES.items()]
    for file in FILES:
        for service in file.services_by_name.values():
            lines += [f"rpc {rpc.full_name} {rpc.input_type.name} -> {rpc.output_type.name}" for rpc in service.methods]
        for message in file.message_types_by_name.values():
            lines += _of_message(message)
        for enum in file.enum_types_by_name.values():
            lines += _of_enum(enum)
    return lines


def _of_name(name: str) -> Iterator[str]:
    value = getattr(splitmesh.client, name)
    if isinstance(value, type) and issubclass(value, Enum):
        yield from (f"{name}.{member.name}" for member in value)
        return
    if dataclasses.is_dataclass(value):
        yield from (f"{name}.{field.name}: {field.type}" for field in dataclasses.fields(value))
    elif name not in MADE_BY_OTHERS:
        yield f"{name}{_signature(value.__init__)}"
    for member, found in vars(value).items():
        if isinstance(found, property) and found.fget is not None:
            yield f"{name}.{member}: {inspect.signature(found.fget).return_annotation}"
        elif inspect.isfunction(found) and (member in PROTOCOLS or not member.startswith("_")):
            word = "async " if inspect.iscoroutinefunction(found) else ""
            yield f"{word}{name}.{member}{_signature(found)}"


def _signature(function: Callable[..., object]) -> str:
    signature = inspect.signature(function)
    parts: list[str] = []
    for one in list(signature.parameters.values())[1:]:
        if one.kind is one.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        star = "*" if one.kind is one.VAR_POSITIONAL else ""
        default = "" if one.default is one.empty else f" = {one.default!r}"
        parts.append(f"{star}{one.name}: {one.annotation}{default}")
    return f"({', '.join(parts)}) -> {signature.return_annotation}"


def _of_message(message: Descriptor) -> Iterator[str]:
    for field in sorted(message.fields, key=lambda one: one.number):
        kind = field.message_type or field.enum_type
        type_name = kind.full_name if kind is not None else _TYPES[field.type]
        word = "repeated " if field.is_repeated else "optional " if field.has_presence and kind is None else ""
        yield f"{message.full_name} {field.number} {field.name}: {word}{type_name}"
    for nested in message.nested_types:
        yield from _of_message(nested)
    for enum in message.enum_types:
        yield from _of_enum(enum)


def _of_enum(enum: EnumDescriptor) -> Iterator[str]:
    yield from (f"{enum.full_name} {value.number} {value.name}" for value in enum.values)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {SNAPSHOT.name} in the place of printing")
    text = "\n".join(surface()) + "\n"
    if parser.parse_args().write:
        SNAPSHOT.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
