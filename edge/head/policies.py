"""The router's policies: followed, made into a version's gate, and kept on disk for a restart without a router.

It fails safe: a policy that is not there, is damaged, or asks for what this head or version cannot do lets no exit answer, and
says so in the log. Knows policies, gates and one file per version; who sends policies and what they promise is the router's
business, which samples are audited is ``audits.py``'s.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.head.active import ActiveModel
from edge.head.fitted import Fitted
from edge.head.staged import judged
from splitmesh.client.routing import PolicyInfo, RoutingClient
from splitmesh.durable import write_file
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.manifest import Manifest
from splitmesh.routing.finding import FINDINGS
from splitmesh.routing.gate import ESCALATE_ALL, Gate, Override
from splitmesh.routing.rule import DEFAULT, Judge, Rule
from splitmesh.tensor.spec import Array

log = logging.getLogger(__name__)

PAUSE_S = 30.0
"""Before another try after a watch that waiting does not heal."""
MAX_BYTES = 64 * 1024 * 1024
"""A larger file is not read; costs of 1,000 classes take a few MiB."""
MAX_FILES = 256
"""Most policies kept, of all models; the one that was longest neither heard nor started with goes."""

Told = Callable[[str, int, float], None]
"""A version's model and number, and which share of its exits' answers is to be audited."""
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Threshold = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, from_attributes=True)


class KeptOverride(_Kept):
    """Another threshold, see :class:`splitmesh.routing.gate.Override`."""

    camera: str
    label: str
    threshold: _Threshold


class KeptPolicy(_Kept):
    """What a head follows of a policy, see ``splitmesh.api.routing.v1.Policy``."""

    revision: int = Field(ge=0)
    threshold: _Threshold
    score: str = DEFAULT
    parameters: dict[str, _Finite] = {}
    costs: tuple[_Finite, ...] = ()
    audit_share: float = Field(default=0.0, ge=0, le=0.5, allow_inf_nan=False)
    escalate_unusual: bool = True
    overrides: tuple[KeptOverride, ...] = ()

    @classmethod
    def of(cls, policy: PolicyInfo) -> KeptPolicy:
        """As the router sent it; MeshError FIELD_INVALID for numbers that cannot be."""
        try:
            overrides = [KeptOverride.model_validate(one, from_attributes=True) for one in policy.overrides]
            return cls(
                revision=policy.revision,
                threshold=policy.threshold,
                score=policy.score or DEFAULT,
                parameters=dict(policy.parameters),
                costs=tuple(policy.costs),
                audit_share=policy.audit_share,
                escalate_unusual=policy.escalate_unusual,
                overrides=tuple(overrides),
            )
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise field_error(".".join(str(part) for part in first["loc"]) or "policy", first["msg"]) from error


def nothing_promised(revision: int = 0) -> KeptPolicy:
    """In the place of a policy that is not there or cannot be followed."""
    return KeptPolicy(revision=revision, threshold=ESCALATE_ALL)


class Policies:
    """Of one model of this head.

    Args:
        folder: where policies are kept, a file per version.
        routing: sends them.
        node: this head's name.
        told: hears every share of answers to be audited, before the first frame that it holds for.
    """

    def __init__(self, folder: Path, routing: RoutingClient, node: str, told: Told) -> None:
        self._folder = folder
        self._routing = routing
        self._node = node
        self._told = told

    async def recall(self, active: ActiveModel) -> None:
        """Set the gate of a version that is being loaded by the policy last heard."""
        if active.manifest.exit is None:
            return
        path = self._path(active)
        kept = await asyncio.to_thread(_read, path)
        await self._put_in_force(active, kept or nothing_promised())

    async def follow(self, active: ActiveModel) -> None:
        """Keep the version's gate as the router says, until it is cancelled."""
        model, version = active.info.model, active.info.version
        while True:
            try:
                async for policy in self._routing.watch_policy(model, version, self._node):
                    await self._heard(active, policy)
            except Exception as error:
                unforeseen = not isinstance(error, MeshError)
                log.error(
                    "the policy of %s version %d cannot be followed; again in %.0f s: %s",
                    model, version, PAUSE_S, error, exc_info=unforeseen,
                )  # fmt: skip
            await asyncio.sleep(PAUSE_S)

    async def _heard(self, active: ActiveModel, policy: PolicyInfo) -> None:
        try:
            # In a thread, as what follows: a table of costs may be large, and frames must not wait for it.
            kept = await asyncio.to_thread(KeptPolicy.of, policy)
        except MeshError as error:
            _not_followed(active, policy.revision, error)
            kept = nothing_promised(policy.revision)
        await self._put_in_force(active, kept)
        try:
            await asyncio.to_thread(_write, self._path(active), kept)
        except OSError as error:
            log.warning("the policy is in force but not kept for a restart: %s", error)

    async def _put_in_force(self, active: ActiveModel, policy: KeptPolicy) -> None:
        gate, audit_share = None, 0.0
        try:
            gate = await asyncio.to_thread(gate_of, policy, active.manifest, active.fitted)
            audit_share = policy.audit_share
        except Exception as error:  # whatever it is: the gate before may be looser than what holds now
            _not_followed(active, policy.revision, error)
        self._told(active.info.model, active.info.version, audit_share)
        active.gate, active.policy_revision = gate or closed_gate(active.manifest), policy.revision
        log.info(
            "%s of at least %.4f may answer for %s version %d (policy %d, %d overrides)",
            active.gate.judge.rule.score, active.gate.threshold, active.info.model, active.info.version,
            policy.revision, len(policy.overrides) if gate else 0,
        )  # fmt: skip

    def _path(self, active: ActiveModel) -> Path:
        return self._folder / f"{active.info.model}-{active.info.version}.json"


def closed_gate(manifest: Manifest) -> Gate:
    """Lets no exit of the version answer."""
    return Gate(ESCALATE_ALL, Judge(finding=manifest.exit is not None and manifest.exit.finding is not None))


def gate_of(policy: KeptPolicy, manifest: Manifest, fitted: Fitted) -> Gate:
    """The policy for a version with an exit, tried once so that no frame meets what does not fit.

    Raises MeshError FIELD_INVALID for an unknown score and the like, MODEL_CORRUPT, TENSOR_SHAPE_MISMATCH or MODEL_INCOMPLETE
    where the version cannot do what the policy counts on.
    """
    exit_ = manifest.exit
    if exit_ is None:
        raise MeshError(Reason.MODEL_INCOMPLETE, "the version has no exit")
    if fitted.damage:
        raise MeshError(Reason.MODEL_CORRUPT, fitted.damage)
    if policy.escalate_unusual and fitted.unusual is not None and exit_.features is None:
        raise MeshError(Reason.MODEL_INCOMPLETE, "the head gives no features to tell unusual samples by")
    gate = Gate(
        policy.threshold,
        Judge(Rule(policy.score, policy.parameters, policy.costs), finding=exit_.finding is not None),
        overrides=[Override(one.camera, one.label, one.threshold) for one in policy.overrides],
        deferral=fitted.deferral,
        unusual=fitted.unusual,
        escalate_unusual=policy.escalate_unusual,
    )
    outputs = _like_a_frames(manifest)
    for entry in manifest.exits():
        judged(manifest, entry, gate, outputs)
    return gate


def _like_a_frames(manifest: Manifest) -> dict[str, Array]:
    """What the exits might give for a frame of which they know nothing."""
    if manifest.split is None:
        return {}
    classes = len(FINDINGS if manifest.exit is not None and manifest.exit.finding is not None else manifest.labels)
    given = {name for entry in manifest.exits() for name in entry.outputs()}
    shapes = {info.name: [max(1, size) for size in info.shape[1:]] for info in manifest.split.head.outputs}
    made: dict[str, Array] = {name: np.zeros([1, *shapes[name]], dtype=np.float32) for name in given}
    for entry in manifest.exits():
        made[entry.output] = np.full((1, classes), 1 / classes, dtype=np.float32)
        if entry.logits is not None:
            made[entry.logits] = np.zeros((1, classes), dtype=np.float32)
    return made


def _not_followed(active: ActiveModel, revision: int, error: Exception) -> None:
    unforeseen = not isinstance(error, MeshError)
    log.error(
        "policy %d of %s version %d cannot be followed, everything escalates: %s",
        revision, active.info.model, active.info.version, error, exc_info=unforeseen,
    )  # fmt: skip


def _read(path: Path) -> KeptPolicy | None:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        kept = KeptPolicy.model_validate_json(path.read_bytes())
        with suppress(OSError):  # a disk that only reads: the order of use is lost, nothing else
            os.utime(path)
        return kept
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("the policy in %s cannot be read, everything escalates until the router sends it: %s", path, error)
        return None


def _write(path: Path, policy: KeptPolicy) -> None:
    write_file(path, policy.model_dump_json().encode(), mode=0o644)
    with suppress(OSError):  # another model's policy is being written: the next one lets old ones go
        by_age = sorted(path.parent.glob("[!.]*.json"), key=lambda one: one.stat().st_mtime_ns)
        for old in by_age[:-MAX_FILES]:
            old.unlink(missing_ok=True)
