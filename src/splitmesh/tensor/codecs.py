"""Packing of a frame's bytes: ``identity`` and ``zstd`` for anything, and what a codec of one model version must do.

Quantisation is not here: it lives inside the graphs (docs/adr/0003). A decoder is told the exact size to expect, so a
small bomb cannot ask for memory (python-zstandard ignores max_output_size when the frame declares its size). The codec
``range`` needs a version's tables and so is no entry of the table here, only a name: whoever has the tables passes it
along (``entropy.py``).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import zstandard

from splitmesh.errors import MeshError, Reason
from splitmesh.tensor.spec import Buffer, TensorSpec

MAX_WINDOW_BYTES = 1 << 23
ZSTD_LEVEL = 3


class Codec(Protocol):
    """Packs and unpacks the bytes of one frame."""

    name: str

    def encode(self, data: Buffer) -> Buffer:
        """Packed bytes."""
        ...

    def decode(self, data: Buffer, size_bytes: int) -> Buffer:
        """The ``size_bytes`` original bytes; MeshError PAYLOAD_CORRUPT when ``data`` does not hold exactly these."""
        ...


@runtime_checkable
class ShapedCodec(Codec, Protocol):
    """A codec that must know the tensors in the bytes: one of a model version."""

    def shaped(self, specs: Sequence[TensorSpec]) -> Codec:
        """The codec for exactly these tensors; MeshError TENSOR_* for tensors that it is not for."""
        ...


class Identity:
    """Bytes as they are."""

    name = "identity"

    def encode(self, data: Buffer) -> Buffer:
        """The same bytes."""
        return data

    def decode(self, data: Buffer, size_bytes: int) -> Buffer:
        """The same bytes, their number checked."""
        if len(data) != size_bytes:
            raise _corrupt(f"{len(data)} bytes, expected {size_bytes}")
        return data


class Zstd:
    """Zstandard. Contexts are kept per thread: they are expensive to make and not safe to share."""

    name = "zstd"

    def __init__(self, level: int = ZSTD_LEVEL) -> None:
        self._level = level
        self._local = threading.local()

    def encode(self, data: Buffer) -> Buffer:
        """One zstd frame that declares its content size."""
        compressor: zstandard.ZstdCompressor | None = getattr(self._local, "compressor", None)
        if compressor is None:
            compressor = self._local.compressor = zstandard.ZstdCompressor(level=self._level, write_content_size=True)
        return compressor.compress(data)

    def decode(self, data: Buffer, size_bytes: int) -> Buffer:
        """Refuses before allocating when the declared size is not the expected one."""
        decompressor: zstandard.ZstdDecompressor | None = getattr(self._local, "decompressor", None)
        if decompressor is None:
            decompressor = self._local.decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
        try:
            declared = zstandard.get_frame_parameters(data).content_size
            if declared != size_bytes:
                raise _corrupt(f"the zstd frame declares {declared} bytes, expected {size_bytes}")
            plain = decompressor.decompress(data, max_output_size=size_bytes, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise _corrupt("the zstd frame is damaged or truncated") from error
        if len(plain) != size_bytes:
            raise _corrupt(f"the zstd frame holds {len(plain)} bytes, expected {size_bytes}")
        return plain


def _corrupt(detail: str) -> MeshError:
    return MeshError(Reason.PAYLOAD_CORRUPT, f"payload refused: {detail}")


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Identity(), Zstd())}
"""Every codec that needs nothing but bytes, by name."""

RANGE = "range"
OF_A_VERSION = frozenset({RANGE})
"""Codecs that need what belongs to a model version. A test holds both tables against the proto enum."""


def require_known(name: str) -> None:
    """MeshError CODEC_UNSUPPORTED for a name in neither table."""
    if name not in CODECS and name not in OF_A_VERSION:
        known = ", ".join((*CODECS, *sorted(OF_A_VERSION)))
        raise MeshError(Reason.CODEC_UNSUPPORTED, f"codec {name!r} is unknown; known: {known}")


def codec_named(name: str, own: Mapping[str, Codec] | None = None) -> Codec:
    """The codec, first looked for among a version's ``own``; MeshError CODEC_UNSUPPORTED where there is none."""
    require_known(name)
    codec = (own or {}).get(name) or CODECS.get(name)
    if codec is None:
        raise MeshError(
            Reason.CODEC_UNSUPPORTED, f"codec {name!r} needs the tables of a model version; here are none for it"
        )
    return codec


def for_tensors(codec: Codec, specs: Sequence[TensorSpec]) -> Codec:
    """The codec, told what the bytes are where it must know."""
    return codec.shaped(specs) if isinstance(codec, ShapedCodec) else codec


def encode(name: str, data: Buffer) -> Buffer:
    """Pack ``data`` with the named codec."""
    return codec_named(name).encode(data)


def decode(name: str, data: Buffer, size_bytes: int) -> Buffer:
    """Unpack exactly ``size_bytes`` bytes with the named codec."""
    return codec_named(name).decode(data, size_bytes)
