"""Versions out of an OCI image layout folder, every digest compared and every name that becomes a file checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.export import oci_format as oci
from splitmesh.export.files import new_file, write_all, write_file
from splitmesh.export.oci_blobs import LAYOUT, content, index, verified
from splitmesh.export.oci_format import Descriptor, ImageManifest
from splitmesh.export.record import MAX_RECORD_BYTES, PLAIN_NAME, RECORD, FileDigest, VersionRecord


def tags_of(layout: Path) -> dict[str, str]:
    """The versions in a layout: tag to digest of the manifest; MODEL_CORRUPT, FIELD_INVALID when it is no layout."""
    if not (layout / LAYOUT).is_file():
        raise field_error("oci", f"{layout} is no OCI layout: it has no {LAYOUT}")
    return {one.tag: one.digest for one in index(layout).descriptors() if one.tag and _is_ours(one)}


def extract(layout: Path, tag: str, folder: Path) -> VersionRecord:
    """Write a version's artefacts and record to ``folder``, every digest compared.

    Args:
        layout: the folder of the layout.
        tag: names the version; empty: the only one there is.
        folder: exists; is left with some of the files when something is wrong.

    Raises:
        MeshError: VERSION_NOT_FOUND, no such tag; FIELD_INVALID, no tag was given and there are several; DIGEST_MISMATCH, a
            content is not what its name says; MODEL_CORRUPT, the layout is damaged or names a file that is no plain one.
    """
    version = _find(layout, tag)
    manifest = oci.read(ImageManifest, content(layout, version, oci.MAX_DOCUMENT_BYTES), "a manifest")
    if manifest.artifactType != oci.ARTIFACT_TYPE:
        raise oci.corrupt(f"{version.digest} holds {manifest.artifactType[:100]!r}, no model of splitmesh")
    layers = {layer.annotations.get(oci.TITLE, ""): layer for layer in manifest.layers}
    if len(layers) != len(manifest.layers) or RECORD not in layers:
        raise oci.corrupt("two layers have the same title, or there is no record of the version")
    record = VersionRecord.from_json(content(layout, layers.pop(RECORD), MAX_RECORD_BYTES))
    named = {name: FileDigest(one.sha256, one.size) for name, one in layers.items()}
    if named != dict(record.artifacts) or not all(PLAIN_NAME.fullmatch(name) for name in named):
        raise oci.corrupt("the layers are not those that the record names")
    for name, layer in layers.items():
        with new_file(folder / name) as file:
            for piece in verified(layout, layer):
                write_all(file, piece)
    record = replace(record, signatures=tuple(_signatures(layout, version)))
    write_file(folder / RECORD, record.to_json())
    return record


def _find(layout: Path, tag: str) -> Descriptor:
    known = tags_of(layout)
    if not tag and len(set(known.values())) != 1:
        raise field_error("oci", f"{layout} holds {', '.join(sorted(known)) or 'no version'}: say which, FOLDER:TAG")
    wanted = known.get(tag) if tag else next(iter(known.values()))
    for one in index(layout).descriptors():
        if one.digest == wanted:
            return one
    text = f"{layout} has no {tag!r}; it has {', '.join(sorted(known)) or 'no version'}"
    raise MeshError(Reason.VERSION_NOT_FOUND, text)


def _is_ours(entry: Descriptor) -> bool:
    return (entry.model_extra or {}).get("artifactType") == oci.ARTIFACT_TYPE


def _signatures(layout: Path, version: Descriptor) -> Iterator[bytes]:
    for entry in index(layout).descriptors():
        if (entry.model_extra or {}).get("artifactType") != oci.SIGNATURE_TYPE:
            continue
        manifest = oci.read(ImageManifest, content(layout, entry, oci.MAX_DOCUMENT_BYTES), "a signature's manifest")
        if manifest.subject is not None and manifest.subject.digest == version.digest:
            for layer in manifest.layers:
                yield content(layout, layer, oci.MAX_DOCUMENT_BYTES)
