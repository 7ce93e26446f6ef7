"""Large bytes fields of protobuf messages, taken out when a message is read and put in when it is written, without the
copies that Python's protobuf makes of them.

Knows the wire format (https://protobuf.dev/programming-guides/encoding) and no message; ``kernel/large_fields.py`` lists which
fields of which messages are large. What is unusual here (a field twice, more fields than a sender needs, bytes that are no
message) is left to protobuf, which then decides alone: lifted or not, a message says the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from splitmesh.tensor.spec import Buffer

LARGE_BYTES = 64 * 1024
"""Below this size a message is parsed and written as protobuf does it: there copies cost less than looking for the fields."""
MAX_FIELDS = 2048
"""Most fields looked at in one message; Python needs about half a microsecond for each."""
LENGTH_BYTES = 5
"""Of a tag or a length, at most; protobuf takes no longer ones."""
VARINT_BYTES = 10
"""Of any other number."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Lifted(Generic[M]):
    """A message and, beside it, the content of its large fields."""

    message: M
    """Everything else; its large fields may be empty and are not to be read."""
    blobs: tuple[Buffer, ...]
    """The large fields' content in the order of the wire: of a repeated field one each, of a field inside repeated messages
    one for each of these, also where it is empty; of fields that exclude each other (a oneof) those of the one that is set."""


@dataclass(slots=True)
class _Node:
    """A message on the way to large fields."""

    leaves: dict[int, FieldDescriptor] = field(default_factory=dict)
    children: dict[int, tuple[FieldDescriptor, _Node]] = field(default_factory=dict)
    rivals: set[int] = field(default_factory=set)
    """These and all that exclude them."""

    def add(self, message: Descriptor, path: list[str]) -> None:
        found = message.fields_by_name[path[0]]
        if len(path) == 1:
            if found.type != FieldDescriptor.TYPE_BYTES:
                raise ValueError(f"{found.full_name} is not a bytes field")
            self.leaves[found.number] = found
        else:
            _, child = self.children.setdefault(found.number, (found, _Node()))
            child.add(_described(found.message_type), path[1:])
        excluded = {found.number}
        if found.containing_oneof is not None:
            excluded.update(rival.number for rival in found.containing_oneof.fields)
        if self.rivals and self.rivals != excluded:
            raise ValueError(f"the large fields of {message.full_name} do not exclude each other")
        self.rivals = excluded

    def collect(self, message: Message, blobs: list[Buffer]) -> None:
        """The content of the large fields of a parsed message."""
        for leaf in self.leaves.values():
            if leaf.is_repeated:
                blobs.extend(getattr(message, leaf.name))
            elif not leaf.has_presence or message.HasField(leaf.name):
                blobs.append(getattr(message, leaf.name))
        for member, child in self.children.values():
            if member.is_repeated:
                for element in getattr(message, member.name):
                    child.collect(element, blobs)
            elif message.HasField(member.name):
                child.collect(getattr(message, member.name), blobs)


class LargeFields(Generic[M]):
    """Reads and writes messages of one type beside their large fields.

    ``LargeFields(RunRequest, "frame.payload", "chunk.data")``: paths of bytes fields through singular and repeated messages.
    Paths that part at a message must part at members of one oneof there.
    """

    def __init__(self, message_type: type[M], *paths: str) -> None:
        self._type = message_type
        self._root = _Node()
        for path in paths:
            self._root.add(_described(message_type.DESCRIPTOR), path.split("."))

    def parse(self, data: bytes) -> Lifted[M]:
        """A deserializer for gRPC: ``blobs`` are memoryviews into ``data``, or bytes where the message is small or unusual.

        Raises google.protobuf.message.DecodeError exactly when ``message_type.FromString`` does.
        """
        if len(data) >= LARGE_BYTES:
            taking = _Taking(data)
            try:
                rest = taking.out(self._root, 0, len(data))
            except _UnusualError:
                pass
            else:
                return Lifted(self._type.FromString(rest), tuple(taking.blobs))
        message = self._type.FromString(data)
        blobs: list[Buffer] = []
        self._root.collect(message, blobs)
        return Lifted(message, tuple(blobs))

    def serialize(self, lifted: Lifted[M] | M) -> bytes:
        """A serializer for gRPC: the message with ``blobs`` in their places, each copied once; a plain message as it is.

        Of a repeated field the message itself needs to hold nothing. ValueError for too few or too many blobs, and for a
        message whose large fields are not empty.
        """
        if not isinstance(lifted, Lifted):
            return lifted.SerializeToString()
        data = lifted.message.SerializeToString()
        blobs = iter(lifted.blobs)
        parts, _ = _put_in(data, self._root, 0, len(data), blobs)
        if next(blobs, None) is not None:
            raise ValueError(f"{len(lifted.blobs)} blobs are more than the message has places for")
        return b"".join(parts)


class _UnusualError(Exception):
    """Left to protobuf."""


class _Taking:
    """Takes large fields out of one message."""

    def __init__(self, data: bytes) -> None:
        self.blobs: list[Buffer] = []
        self._data = data
        self._view = memoryview(data)
        self._fields_left = MAX_FIELDS

    def out(self, node: _Node, start: int, end: int) -> bytes:
        """The message at ``start:end`` with its large fields empty; the fields go to ``blobs``."""
        data, leaves, children, rivals = self._data, node.leaves, node.children, node.rivals
        parts: list[bytes] = []
        kept, seen = start, 0
        for number, kind, begun, content, after in _fields(data, start, end):
            self._fields_left -= 1
            if self._fields_left < 0:
                raise _UnusualError
            if number not in rivals:
                continue
            found = leaves[number] if number in leaves else children[number][0] if number in children else None
            if seen and (seen != number or found is None or not found.is_repeated):
                # Protobuf merges what comes twice, or drops what came first.
                raise _UnusualError
            seen = number
            if found is None:
                continue
            if kind != _BYTES:
                raise _UnusualError
            parts.append(data[kept:begun])
            if number in leaves:
                parts.append(b"\0")
                self.blobs.append(self._view[content:after])
            else:
                rest = self.out(children[number][1], content, after)
                parts += (_varint(len(rest)), rest)
            kept = after
        if not seen:
            self.blobs.extend(b"" for leaf in leaves.values() if not leaf.has_presence and not leaf.is_repeated)
        parts.append(data[kept:end])
        return b"".join(parts)


def _described(message: object) -> Descriptor:
    if message is None:
        raise ValueError("a path goes through a field that is no message")
    return cast(Descriptor, message)  # protobuf's own, or that of its C library


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Number, wire type, where its length begins, where its content begins and where it ends, of every field."""
    while at < end:
        tag = data[at]
        at += 1
        if tag > 127:
            tag, at = _read_varint(data, at - 1, end)
        begun = content = at
        kind = tag & 7
        if kind == _BYTES:
            if at >= end:
                raise _UnusualError
            length = data[at]
            content = at + 1
            if length > 127:
                length, content = _read_varint(data, at, end)
            at = content + length
        elif kind == _VARINT:
            most = min(end, at + VARINT_BYTES)
            while at < most and data[at] > 127:
                at += 1
            if at == most:
                raise _UnusualError
            at += 1
        elif kind == _FIXED64:
            at += 8
        elif kind == _FIXED32:
            at += 4
        else:
            raise _UnusualError
        if at > end:
            raise _UnusualError
        yield tag >> 3, kind, begun, content, at


def _put_in(data: bytes, node: _Node, start: int, end: int, blobs: Iterator[Buffer]) -> tuple[list[Buffer], int]:
    """The parts of the message at ``start:end`` with its large fields, and their length."""
    parts: list[Buffer] = []
    kept = start
    open_leaves = dict(node.leaves)
    for number, kind, begun, content, after in _fields(data, start, end):
        if kind != _BYTES:
            continue
        if number in node.leaves:
            if after > content:
                raise ValueError(f"{node.leaves[number].full_name} is not empty")
            blob = _following(blobs)
            parts += (data[kept:begun], _varint(len(blob)), blob)
            if not node.leaves[number].is_repeated:
                del open_leaves[number]
        elif number in node.children:
            inside, length = _put_in(data, node.children[number][1], content, after, blobs)
            parts += (data[kept:begun], _varint(length), *inside)
        else:
            continue
        kept = after
    parts.append(data[kept:end])
    for leaf in open_leaves.values():
        more = blobs if leaf.is_repeated else () if leaf.has_presence else (_following(blobs),)
        for blob in more:
            parts += (_varint(leaf.number << 3 | _BYTES), _varint(len(blob)), blob)
    return parts, sum(map(len, parts))


def _following(blobs: Iterator[Buffer]) -> Buffer:
    blob = next(blobs, None)
    if blob is None:
        raise ValueError("the message has places for more blobs")
    return blob


def _read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A tag or a length, and where it ends."""
    value = 0
    for shift in range(0, 7 * LENGTH_BYTES, 7):
        if at >= end:
            raise _UnusualError
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise _UnusualError


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
