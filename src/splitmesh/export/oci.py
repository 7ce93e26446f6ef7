"""Versions into an OCI image layout folder, so that no reader sees half; ``oci_read`` reads them.

A version is an artifact manifest with one layer per artefact and one for its record (``record``); each signature is a manifest
of its own whose subject it is. The manifest's digest depends on the version only, not on its aliases or on who signed it
since. Contents come first and ``index.json`` last, in one step, so what was cut off leaves nothing but contents that nobody
names. Knows no registry.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC
from pathlib import Path

from splitmesh.durable import make_folders, sync_folder
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.export import oci_format as oci
from splitmesh.export.files import disk_error, write_file
from splitmesh.export.oci_blobs import BLOBS, INDEX, LAYOUT, content, descriptor, index, keep, keep_file, require_place
from splitmesh.export.oci_format import Descriptor, ImageManifest, Index
from splitmesh.export.record import MEDIA_TYPE, RECORD, FileDigest, VersionRecord


@dataclass(frozen=True, slots=True)
class Written:
    """What an export made of a version."""

    digest: str
    """Of its manifest, ``sha256:...``."""
    tags: tuple[str, ...]
    new_bytes: int
    """Of contents that the layout did not have."""
    signatures: int


def add_version(layout: Path, record: VersionRecord, files: Mapping[str, Path], tags: Sequence[str]) -> Written:
    """Put a version into a layout, which is made when it is not there; what else is in it stays.

    Args:
        layout: the folder.
        record: the version; its signatures become manifests of their own.
        files: where each artefact of it is.
        tags: names of it; one that another version of the same model has moves here.

    Raises:
        MeshError: FIELD_INVALID, a tag is none or belongs to another model, or the folder is no layout; DIGEST_MISMATCH, a
            file is not what the record says; MODEL_CORRUPT, the layout is damaged; QUEUE_FULL, somebody else is writing to
            it; STORAGE_FULL or SERVICE_UNAVAILABLE, it cannot be written.
    """
    for tag in tags:
        oci.require_tag(tag)
    with _writing(layout):
        known = index(layout)
        new_bytes = sum(keep_file(layout, files[name], one) for name, one in sorted(record.artifacts.items()))
        plain = replace(record, signatures=(), aliases=()).to_json()
        layers = [descriptor(oci.media_type(n), one.sha256, one.size_bytes, n) for n, one in _sorted(record)]
        layers.append(keep(layout, MEDIA_TYPE, plain, RECORD))
        manifest = ImageManifest(
            artifactType=oci.ARTIFACT_TYPE,
            config=keep(layout, oci.EMPTY_TYPE, oci.EMPTY),
            layers=layers,
            annotations=_annotations(record),
        )
        version = keep(layout, oci.MANIFEST_TYPE, oci.written(manifest))
        signed = [_signature(layout, version, envelope) for envelope in record.signatures]
        _name(layout, known, record, version, signed, tags)
        sync_folder(layout / BLOBS)
        write_file(layout / INDEX, oci.written(known))
    return Written(version.digest, tuple(tags), new_bytes, len(signed))


def _name(
    layout: Path,
    known: Index,
    record: VersionRecord,
    version: Descriptor,
    signed: Sequence[Descriptor],
    tags: Sequence[str],
) -> None:
    """The entries of the index: one per tag, and one per signature."""
    for entry in known.descriptors():
        if entry.tag in tags and entry.digest != version.digest:
            _require_same_model(layout, entry, record)
    dropped = {version.digest, *(one.digest for one in signed)}
    other = {one.tag for one in known.descriptors() if one.digest == version.digest and one.tag} - set(tags)
    kept = [entry for entry in known.manifests if entry.get("digest") not in dropped and _tag(entry) not in tags]
    ours = [
        {**_plain(version, oci.ARTIFACT_TYPE), "annotations": {oci.REF_NAME: tag}} for tag in (*sorted(other), *tags)
    ]
    known.manifests = [*kept, *ours, *(_plain(one, oci.SIGNATURE_TYPE) for one in signed)]
    if len(known.manifests) > oci.MAX_ENTRIES:
        raise field_error("oci", f"{layout} would hold more than {oci.MAX_ENTRIES} entries; begin another")


def _require_same_model(layout: Path, entry: Descriptor, record: VersionRecord) -> None:
    """A tag moves among the versions of one model; a version's own number never names two contents."""
    if (entry.model_extra or {}).get("artifactType") != oci.ARTIFACT_TYPE:
        raise field_error("tag", f"{entry.tag!r} names something else in {layout} already; give --tag")
    known = oci.read(ImageManifest, content(layout, entry, oci.MAX_DOCUMENT_BYTES), "a manifest").annotations
    of = f"{known.get(oci.MODEL, '?')}:{known.get(oci.VERSION, '?')}"
    if known.get(oci.MODEL) != record.model or known.get(oci.VERSION) == str(record.version):
        raise field_error("tag", f"{entry.tag!r} names another content already, {of} ({entry.digest[:19]}); give --tag")


def _tag(entry: Mapping[str, object]) -> object:
    annotations = entry.get("annotations")
    return annotations.get(oci.REF_NAME) if isinstance(annotations, dict) else None


def _plain(descriptor: Descriptor, artifact_type: str) -> dict[str, object]:
    return {
        "mediaType": descriptor.mediaType,
        "digest": descriptor.digest,
        "size": descriptor.size,
        "artifactType": artifact_type,
    }


def _signature(layout: Path, version: Descriptor, envelope: bytes) -> Descriptor:
    manifest = ImageManifest(
        artifactType=oci.SIGNATURE_TYPE,
        config=keep(layout, oci.EMPTY_TYPE, oci.EMPTY),
        layers=[keep(layout, oci.SIGNATURE_TYPE, envelope)],
        subject=version,
    )
    return keep(layout, oci.MANIFEST_TYPE, oci.written(manifest))


def _annotations(record: VersionRecord) -> dict[str, str]:
    found = {
        oci.CREATED: record.create_time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        oci.VERSION: str(record.version),
        oci.REVISION: record.lineage.code_version,
        oci.DESCRIPTION: record.description,
        oci.MODEL: record.model,
        oci.LINEAGE: record.lineage.to_json(),
    }
    return {name: text for name, text in found.items() if text}


def _sorted(record: VersionRecord) -> list[tuple[str, FileDigest]]:
    return sorted(record.artifacts.items())


@contextmanager
def _writing(layout: Path) -> Iterator[None]:
    """The layout is there, and this process is the only one that writes to it."""
    try:
        require_place(layout)
        make_folders(layout / BLOBS)
        folder = os.open(layout, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise disk_error(layout, error) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not (layout / LAYOUT).exists():
            write_file(layout / LAYOUT, oci.written({"imageLayoutVersion": oci.LAYOUT_VERSION}))
        yield
    except BlockingIOError as error:
        text = f"somebody else is writing to {layout}"
        raise MeshError(Reason.QUEUE_FULL, text, retry_after_s=1.0) from error
    finally:
        os.close(folder)
