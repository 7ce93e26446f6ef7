"""What makes the parts of a version complete and sound: all are here, the manifest names them, each model file is what it
says. Says which other versions the version runs with.

Knows the order of the checks, cheap ones first. Does not know how contents are stored, nor what a sound model is (``check``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from services.registry.check import Interface, ModelCheck
from services.registry.content.port import ContentStore
from services.registry.metadata.records import Artifact, Draft
from services.registry.needs import read_needs
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.alternatives import ALTERNATIVES
from splitmesh.model.lineage import VersionName
from splitmesh.model.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, SegmentInfo

MAX_MISSING = 7
"""Digests of missing parts in one answer: what a detail of an error holds (``MAX_DETAIL_BYTES`` in the kernel)."""


class Soundness:
    """Looks at what a version shall be made of.

    Args:
        contents: where its parts are.
        check: of each model file.
    """

    def __init__(self, contents: ContentStore, check: ModelCheck) -> None:
        self._contents = contents
        self._check = check

    async def require(self, draft: Draft) -> tuple[VersionName, ...]:
        """The versions that this one runs with; they may not exist.

        Raises:
            MeshError: MODEL_INCOMPLETE; ARTIFACT_NOT_FOUND, with the digests of up to ``MAX_MISSING`` parts that are missing;
                FIELD_INVALID, a size is another; or what is wrong with the manifest, the list of alternatives or a model file.
        """
        parts = {artifact.name: artifact for artifact in draft.artifacts}
        require_named([MANIFEST], parts, "a version needs")
        await self._require_stored(draft.artifacts)
        # One byte more than allowed is enough for a text's own check to refuse it.
        text = await self._contents.read(parts[MANIFEST].sha256, 0, MAX_MANIFEST_BYTES + 1)
        manifest = await asyncio.to_thread(Manifest.from_json, text)
        require_named(manifest.artifacts(), parts, "the manifest names")
        needs = await self._alternatives(draft.model, parts)
        segments = {segment.artifact: segment for segment in manifest.segments()}
        for name in sorted(segments.keys() | {name for name in parts if name.lower().endswith(".onnx")}):
            local = self._contents.local(parts[name].sha256)
            found = await self._check.check(name, parts[name].sha256, local)
            if name in segments:
                _require_equal(segments[name], found)
        return needs

    async def _require_stored(self, artifacts: Sequence[Artifact]) -> None:
        digests = list(dict.fromkeys(artifact.sha256 for artifact in artifacts))
        if missing := await self._contents.missing(digests):
            names = sorted({artifact.name for artifact in artifacts if artifact.sha256 in set(missing)})
            raise MeshError(
                Reason.ARTIFACT_NOT_FOUND,
                f"{', '.join(names[:10])}{' and more' if names[10:] else ''}: not there, or its upload is unfinished",
                metadata={"sha256": missing[0], "missing": ",".join(missing[:MAX_MISSING])},
            )
        for artifact in artifacts:
            size_bytes = await self._contents.size_of(artifact.sha256)
            if size_bytes != artifact.size_bytes:
                raise field_error(
                    "artifacts", f"{artifact.name} is said to have {artifact.size_bytes} bytes but has {size_bytes}"
                )

    async def _alternatives(self, model: str, parts: Mapping[str, Artifact]) -> tuple[VersionName, ...]:
        if ALTERNATIVES not in parts:
            return ()
        return await read_needs(self._contents, model, parts[ALTERNATIVES].sha256)


def require_named(names: Sequence[str], parts: Mapping[str, Artifact], why: str) -> None:
    """MODEL_INCOMPLETE unless all of these are among the parts."""
    missing = [name for name in names if name not in parts]
    if missing:
        raise MeshError(
            Reason.MODEL_INCOMPLETE,
            f"{why} {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not among the artefacts",
            metadata={"missing": ",".join(missing)},
        )


def _require_equal(segment: SegmentInfo, found: Interface) -> None:
    """The manifest may leave out outputs that nobody reads; inputs all have to be fed."""
    inputs, outputs = {one.name for one in segment.inputs}, {one.name for one in segment.outputs}
    wrong = sorted((inputs ^ found.inputs) | (outputs - found.outputs))
    if wrong:
        raise MeshError(
            Reason.MODEL_CORRUPT,
            f"{segment.artifact} has not the inputs and outputs that the manifest says: {', '.join(wrong[:10])}",
            metadata={"artifact": segment.artifact},
        )
