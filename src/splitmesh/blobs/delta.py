"""Patches between contents: a target as one zstd frame (RFC 8878) whose dictionary is the base.

What ``zstd --patch-from`` makes: the whole base is the prefix of the window, and long-distance matching finds what both have in
common wherever it moved. A base and a target of weights that all changed a little share no bytes, and their patch is as large as
the target. Knows bytes; does not know where they are, nor when a patch is worth its name.
"""

from __future__ import annotations

import sys
from typing import Any

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from splitmesh.errors import MeshError, Reason

MAX_BYTES = 1 << 31
"""Of a base or a target: the farthest that a frame can reach back."""

_LEVEL = 1
"""More costs time and finds no more: the long matches do the work (50 MB with 1 KB changed: 6 KB, with level 3 43 KB)."""
_MIN_MATCH = 32
_HASH_RATE_LOG = 4
"""One of 16 positions is remembered: with matches this short it finds nearly all, in 16 bytes of memory per 64 of the base."""
_MIN_DICTIONARY_BYTES = 8
"""zstd takes no shorter one, and there is nothing to find in it."""
_MIN_WINDOW_LOG, _MAX_WINDOW_LOG = 10, 31


def make_delta(base: bytes, target: bytes) -> bytes:
    """The patch that makes ``target`` of ``base``; a frame that declares its size and ends with a checksum.

    Memory: about 3 x (base + target). MeshError FRAME_TOO_LARGE above :data:`MAX_BYTES`.
    """
    for content in (base, target):
        if len(content) > MAX_BYTES:
            raise MeshError(Reason.FRAME_TOO_LARGE, f"{len(content)} bytes are not patched, at most {MAX_BYTES} are")
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: _LEVEL,
        # All of the base is reachable for as long as the window holds all of the target.
        zstd.CompressionParameter.window_log: _window_log(max(len(base), len(target))),
        zstd.CompressionParameter.enable_long_distance_matching: 1,
        zstd.CompressionParameter.ldm_min_match: _MIN_MATCH,
        zstd.CompressionParameter.ldm_hash_rate_log: _HASH_RATE_LOG,
        zstd.CompressionParameter.checksum_flag: 1,
    }
    compressor = zstd.ZstdCompressor(options=options, zstd_dict=_prefix(base))
    compressor.set_pledged_input_size(len(target))
    return compressor.compress(target, mode=zstd.ZstdCompressor.FLUSH_FRAME)


def apply_delta(base: bytes, delta: bytes, size_bytes: int) -> bytes:
    """What :func:`make_delta` was given, of ``size_bytes`` bytes.

    Nothing is allocated for a frame that declares another size, and no window beyond what the size needs. The checksum tells
    an other base by chance of 1 in 4 billion; who must know compares a digest.

    Raises:
        MeshError: PAYLOAD_CORRUPT, not one whole patch of this base and size.
    """
    if not 0 <= size_bytes <= MAX_BYTES:
        raise _corrupt(f"it is said to make {size_bytes} bytes")
    try:
        declared = zstd.get_frame_info(delta).decompressed_size
        if declared != size_bytes:
            raise _corrupt(f"it makes {declared} bytes, expected {size_bytes}")
        decompressor = zstd.ZstdDecompressor(
            zstd_dict=_prefix(base),
            options={zstd.DecompressionParameter.window_log_max: _window_log(size_bytes)},
        )
        target = decompressor.decompress(delta, max_length=size_bytes)
        if not decompressor.eof:
            # The checksum may be left to read when the last byte is out.
            target += decompressor.decompress(b"", max_length=1)
    except zstd.ZstdError as error:
        raise _corrupt("it is damaged, or of another base") from error
    if not decompressor.eof or decompressor.unused_data or len(target) != size_bytes:
        raise _corrupt("it is truncated, or something follows it")
    return target


def _prefix(base: bytes) -> Any:
    """The dictionary as a prefix of the frame: not digested, which costs more time and memory than the patch itself."""
    return zstd.ZstdDict(base, is_raw=True).as_prefix if len(base) >= _MIN_DICTIONARY_BYTES else None


def _window_log(size_bytes: int) -> int:
    return min(_MAX_WINDOW_LOG, max(_MIN_WINDOW_LOG, (size_bytes - 1).bit_length()))


def _corrupt(detail: str) -> MeshError:
    return MeshError(Reason.PAYLOAD_CORRUPT, f"the patch was refused: {detail}")
