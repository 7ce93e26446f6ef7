"""The contents of an OCI image layout folder: each under its digest, and its digest compared whenever it is used."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.export import oci_format as oci
from splitmesh.export.files import digest_of, new_file, pieces, write_all, write_file
from splitmesh.export.oci_format import Descriptor, Index
from splitmesh.export.record import FileDigest

BLOBS = Path("blobs", "sha256")
INDEX = "index.json"
LAYOUT = "oci-layout"
OWN = ".splitmesh-"
"""How names begin that are no part of a layout: files that are being written, and where they wait."""


def require_place(layout: Path) -> None:
    """FIELD_INVALID for a folder that holds other files and is no layout; one that is not there may become one."""
    if not layout.is_dir() or (layout / LAYOUT).exists():
        if layout.exists() and not layout.is_dir():
            raise field_error("oci", f"{layout} is no folder")
        return
    if any(name != BLOBS.parts[0] and not name.startswith(OWN) for name in os.listdir(layout)):
        raise field_error("oci", f"{layout} holds other files and no {LAYOUT}: give a new folder, or a layout")


def index(layout: Path) -> Index:
    """What the layout names; empty before the first version. MODEL_CORRUPT, FIELD_INVALID of another layout version."""
    found = oci.read(oci.Layout, _bounded(layout / LAYOUT), LAYOUT)
    if found.imageLayoutVersion != oci.LAYOUT_VERSION:
        raise field_error(
            "oci", f"{layout} has layout version {found.imageLayoutVersion[:20]!r}, not {oci.LAYOUT_VERSION}"
        )
    return oci.read(Index, _bounded(layout / INDEX), INDEX) if (layout / INDEX).exists() else Index()


def descriptor(media_type: str, sha256: str, size_bytes: int, title: str = "") -> Descriptor:
    """Of a content by digest."""
    annotations = {oci.TITLE: title} if title else {}
    return Descriptor(mediaType=media_type, digest=f"sha256:{sha256}", size=size_bytes, annotations=annotations)


def keep(layout: Path, media_type: str, content: bytes, title: str = "") -> Descriptor:
    """Writes the content unless it is there."""
    one = descriptor(media_type, hashlib.sha256(content).hexdigest(), len(content), title)
    path = layout / BLOBS / one.sha256
    if not _is_there(path, FileDigest(one.sha256, one.size)):
        write_file(path, content)
    return one


def keep_file(layout: Path, source: Path, wanted: FileDigest) -> int:
    """Copies it unless it is there; bytes copied. What it is, is compared on the way."""
    path = layout / BLOBS / wanted.sha256
    if _is_there(path, wanted):
        return 0
    with new_file(path) as file:
        for piece in _compared(pieces(source), wanted, str(source)):
            write_all(file, piece)
    return wanted.size_bytes


def _is_there(path: Path, wanted: FileDigest) -> bool:
    """A content appears only whole; one that was spoilt since is written again."""
    if not path.is_file() or path.is_symlink() or path.stat().st_size != wanted.size_bytes:
        return False
    return digest_of(path)[0] == wanted.sha256


def content(layout: Path, one: Descriptor, limit: int) -> bytes:
    """A small content; MODEL_CORRUPT, too large or missing; DIGEST_MISMATCH."""
    if one.size > limit:
        raise oci.corrupt(f"{one.digest} has {one.size} bytes, more than {limit}")
    return b"".join(verified(layout, one))


def verified(layout: Path, one: Descriptor) -> Iterator[bytes]:
    """A content in pieces, and DIGEST_MISMATCH at its end when it is not what its name says; MODEL_CORRUPT: missing."""
    path = layout / BLOBS / one.sha256
    if not path.is_file():
        raise oci.corrupt(f"it lacks {one.digest}")
    return _compared(pieces(path), FileDigest(one.sha256, one.size), str(path))


def _compared(content: Iterator[bytes], wanted: FileDigest, name: str) -> Iterator[bytes]:
    """The pieces, and DIGEST_MISMATCH after the last one, or as soon as there are too many."""
    digest, size_bytes = hashlib.sha256(), 0
    for piece in content:
        digest.update(piece)
        size_bytes += len(piece)
        if size_bytes > wanted.size_bytes:
            break
        yield piece
    if size_bytes != wanted.size_bytes or digest.hexdigest() != wanted.sha256:
        raise MeshError(Reason.DIGEST_MISMATCH, f"{name} is not the content with SHA-256 {wanted.sha256}")


def _bounded(path: Path) -> bytes:
    content = bytearray()
    for piece in pieces(path):
        content += piece
        if len(content) > oci.MAX_DOCUMENT_BYTES:
            break
    return bytes(content)
