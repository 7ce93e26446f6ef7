"""What a registry knew of a version, as one JSON file beside its artefacts: digests, lineage, signatures.

With it a folder can be verified, signed for and imported elsewhere without the registry that it came from. It proves
nothing by itself: the signatures inside do.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from splitmesh.errors import MeshError, Reason
from splitmesh.model.lineage import DatasetUse, Lineage, VersionName

RECORD = ".splitmesh-version.json"
"""Name of the file in a folder of artefacts; no artefact can have it."""
MEDIA_TYPE = "application/vnd.splitmesh.version.v1+json"
MAX_RECORD_BYTES = 16 * 1024 * 1024
MAX_ARTIFACTS = 4096

PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""As the registry's: what may become a file name."""


@dataclass(frozen=True, slots=True)
class FileDigest:
    """A content."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One version."""

    model: str
    version: int
    parent: int
    artifacts: Mapping[str, FileDigest]
    created_by: str
    create_time: datetime
    description: str = ""
    aliases: tuple[str, ...] = ()
    """When the record was made."""
    lineage: Lineage = field(default_factory=Lineage)
    signatures: tuple[bytes, ...] = ()
    """DSSE envelopes, JSON."""

    def to_json(self) -> bytes:
        """Canonical: the same bytes for the same record."""
        written = _RecordJson(
            schema_version=1,
            model=self.model,
            version=self.version,
            parent=self.parent,
            artifacts={
                name: _FileJson(sha256=one.sha256, size_bytes=one.size_bytes)
                for name, one in sorted(self.artifacts.items())
            },
            created_by=self.created_by,
            create_time=self.create_time,
            description=self.description,
            aliases=sorted(self.aliases),
            lineage=self.lineage,
            signatures=[base64.b64encode(one).decode() for one in self.signatures],
        )
        return written.model_dump_json(indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, content: bytes) -> VersionRecord:
        """The inverse of :meth:`to_json`; MODEL_CORRUPT for anything else."""
        if len(content) > MAX_RECORD_BYTES:
            raise _corrupt(f"has {len(content)} bytes, more than {MAX_RECORD_BYTES}")
        try:
            read = _RecordJson.model_validate_json(content)
            signatures = tuple(base64.b64decode(one, validate=True) for one in read.signatures)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise _corrupt(f"is not valid: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        except binascii.Error as error:
            raise _corrupt("holds a signature that is not base64") from error
        return cls(
            model=read.model,
            version=read.version,
            parent=read.parent,
            artifacts={name: FileDigest(one.sha256, one.size_bytes) for name, one in read.artifacts.items()},
            created_by=read.created_by,
            create_time=read.create_time,
            description=read.description,
            aliases=tuple(read.aliases),
            lineage=_plain(read.lineage),
            signatures=signatures,
        )


def _plain(read: Lineage) -> Lineage:
    return Lineage(
        parents=tuple(VersionName(one.model, one.version) for one in read.parents),
        datasets=tuple(DatasetUse(one.dataset, one.version, one.sha256, one.role) for one in read.datasets),
        task=read.task,
        code_version=read.code_version,
        recipe_sha256=read.recipe_sha256,
        seeds=tuple(read.seeds),
        metrics=dict(read.metrics),
    )


def _corrupt(problem: str) -> MeshError:
    return MeshError(Reason.MODEL_CORRUPT, f"the record of a version {problem}")


class _FileJson(BaseModel):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


_Name = Annotated[str, Field(pattern=rf"^{PLAIN_NAME.pattern}$")]
_ModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class _RecordJson(BaseModel):
    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1]
    model: _ModelName
    version: int = Field(ge=1)
    parent: int = Field(ge=0)
    artifacts: dict[_Name, _FileJson] = Field(min_length=1, max_length=MAX_ARTIFACTS)
    created_by: str = Field(max_length=1000)
    create_time: AwareDatetime
    description: str = Field(max_length=10_000)
    aliases: list[Annotated[str, Field(max_length=64)]] = Field(max_length=1000)
    lineage: Lineage
    signatures: list[Annotated[str, Field(max_length=4 * 1024 * 1024)]] = Field(max_length=1000)
