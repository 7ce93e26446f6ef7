"""The JSON documents of an OCI image layout, read with every bound checked, and the words that splitmesh puts in them.

Source: https://github.com/opencontainers/image-spec, version 1.1: image-layout.md, image-index.md, manifest.md ("Guidelines for
Artifact Usage") and descriptor.md. Knows no folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitmesh.errors import MeshError, Reason, field_error

LAYOUT_VERSION = "1.0.0"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY = b"{}"

ARTIFACT_TYPE = "application/vnd.splitmesh.model.v1"
SIGNATURE_TYPE = "application/vnd.dsse.envelope.v1+json"
"""Of a signature's own manifest, whose subject is the version's."""

REF_NAME = "org.opencontainers.image.ref.name"
TITLE = "org.opencontainers.image.title"
CREATED = "org.opencontainers.image.created"
VERSION = "org.opencontainers.image.version"
REVISION = "org.opencontainers.image.revision"
DESCRIPTION = "org.opencontainers.image.description"
MODEL = "dev.splitmesh.model"
LINEAGE = "dev.splitmesh.lineage"

MAX_DOCUMENT_BYTES = 8 * 1024 * 1024
MAX_ENTRIES = 10_000

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
"""As a registry's tags (distribution-spec), so that a layout can be pushed as it is."""

Document = TypeVar("Document", bound=BaseModel)


class Descriptor(BaseModel):
    """Content by digest. Fields that we do not know stay as they are: the layout may be shared with other tools."""

    model_config = ConfigDict(extra="allow")

    mediaType: Annotated[str, Field(max_length=256)]  # noqa: N815
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]
    annotations: Annotated[dict[str, str], Field(max_length=100)] = {}

    @property
    def sha256(self) -> str:
        """64 hexadecimal digits."""
        return self.digest.removeprefix("sha256:")

    @property
    def tag(self) -> str:
        """Of an entry of the index; empty: it has none."""
        return self.annotations.get(REF_NAME, "")


class Layout(BaseModel):
    """The file ``oci-layout``."""

    imageLayoutVersion: str  # noqa: N815


class Index(BaseModel):
    """The file ``index.json``. Entries of other tools are kept as they are, whatever their digests."""

    model_config = ConfigDict(extra="allow")

    schemaVersion: int = 2  # noqa: N815
    mediaType: str = INDEX_TYPE  # noqa: N815
    manifests: Annotated[list[dict[str, object]], Field(max_length=MAX_ENTRIES)] = []

    def descriptors(self) -> list[Descriptor]:
        """The entries that can be read as ours can."""
        found = []
        for entry in self.manifests:
            try:
                found.append(Descriptor.model_validate(entry))
            except ValidationError:
                continue
        return found


class ImageManifest(BaseModel):
    """A manifest of ours, or of a signature."""

    model_config = ConfigDict(extra="allow")

    schemaVersion: int = 2  # noqa: N815
    mediaType: str = MANIFEST_TYPE  # noqa: N815
    artifactType: str = ""  # noqa: N815
    config: Descriptor
    layers: Annotated[list[Descriptor], Field(max_length=MAX_ENTRIES)]
    subject: Descriptor | None = None
    annotations: dict[str, str] = {}


def written(document: BaseModel | Mapping[str, object]) -> bytes:
    """Canonical: the same bytes for the same document."""
    plain = document.model_dump(exclude_none=True) if isinstance(document, BaseModel) else dict(document)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def read(kind: type[Document], content: bytes, what: str) -> Document:
    """MODEL_CORRUPT for anything else, named ``what``."""
    if len(content) > MAX_DOCUMENT_BYTES:
        raise corrupt(f"{what} has more than {MAX_DOCUMENT_BYTES} bytes")
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise corrupt(f"{what} is not valid: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def require_tag(tag: str) -> None:
    """FIELD_INVALID unless a registry would take it."""
    if not _TAG.fullmatch(tag):
        raise field_error("tag", f"{tag[:160]!r} is no tag: letters, digits, dot, dash and underscore, at most 128")


def media_type(name: str) -> str:
    """Of an artefact, by its name."""
    kind = name.rpartition(".")[2].lower()
    if kind == "json":
        return "application/json"
    return f"application/vnd.splitmesh.{kind}" if kind in ("onnx", "safetensors") else "application/octet-stream"


def corrupt(problem: str) -> MeshError:
    """Something in a layout is not what it must be."""
    return MeshError(Reason.MODEL_CORRUPT, f"the OCI layout is damaged: {problem}")
