"""Tensors as they cross a wire: what they look like (spec), how they are packed (codecs), how frames are cut (framing).

Pure: numpy, zstandard and crc32c; ``entropy`` also needs constriction and safetensors and is imported by itself.
"""

from splitmesh.tensor.codecs import CODECS, Codec, decode, encode
from splitmesh.tensor.framing import Frame, FrameHeader, chunks, pack, unpack
from splitmesh.tensor.spec import DTYPES, MAX_RANK, TensorLimits, TensorSpec, as_bytes, from_bytes, require_finite

__all__ = [
    "CODECS",
    "DTYPES",
    "MAX_RANK",
    "Codec",
    "Frame",
    "FrameHeader",
    "TensorLimits",
    "TensorSpec",
    "as_bytes",
    "chunks",
    "decode",
    "encode",
    "from_bytes",
    "pack",
    "require_finite",
    "unpack",
]
