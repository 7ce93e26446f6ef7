"""``splitmesh models sign | verify``: a signature of one's own, and whether a version is what its signers meant."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from splitmesh.cli.connect import channels, find_version, mesh_settings, registry_of
from splitmesh.cli.models_shown import transfer
from splitmesh.cli.models_signers import Signer, known_keyring, signers, worst
from splitmesh.cli.output import JsonOption, refuse, run, show_json, show_table
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.client.registry_values import ArtifactRef
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.export.files import digest_of
from splitmesh.export.record import MAX_RECORD_BYTES, RECORD, VersionRecord
from splitmesh.kernel.config import ENV_PREFIX

RIGHT = "right"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found of one version."""

    model: str
    version: int
    artefacts: Mapping[str, str]
    """``right``, or what is wrong."""
    signers: list[Signer]
    trusted: bool | None
    """Whether a key that may do so signed exactly these contents; None: no trust root is set."""


def verify(
    model: Annotated[str, typer.Argument(help="NAME, NAME:VERSION, NAME@ALIAS, or a folder that was pulled.")],
    json: JsonOption = False,
) -> None:
    """Check every digest, and the signatures against SPLITMESH_TRUST_ROOT; of the registry or of a pulled folder."""
    found = run(verify_folder(Path(model)) if Path(model).is_dir() else _verify_version(model))
    if json:
        show_json(found)
    else:
        show_table(f"{found.model}:{found.version}", ["artefact", "is"], list(found.artefacts.items()))
        rows = [[one.key_id[:16], one.name or "?", one.signed_at, one.verdict] for one in found.signers]
        if rows:
            show_table("", ["signed by key", "name", "at", "which is"], rows)
    _conclude(found)


def sign(
    model: Annotated[str, typer.Argument(help="NAME, NAME:VERSION or NAME@ALIAS.")],
    against: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="Pulled folder: sign only what is the same there, byte for byte."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Sign a version with the key of SPLITMESH_SIGNING_KEY, beside the signatures that it has."""

    async def work() -> tuple[VersionInfo, str]:
        if mesh_settings().signing_key is None:
            raise field_error(f"{ENV_PREFIX}SIGNING_KEY", "is not set: the file of the key to sign with")
        async with channels() as opened:
            registry = registry_of(opened)
            version = await find_version(registry, model)
            if against is not None:
                await asyncio.to_thread(_require_same, version, against)
            return version, await _sign(registry, version)

    version, key_id = run(work())
    if json:
        show_json({"model": version.model, "version": version.version, "key_id": key_id})
        return
    print(f"{version.model} version {version.version} is signed by key {key_id[:16]}")


async def verify_folder(folder: Path) -> Verdict:
    """Of what ``models pull`` wrote. Raises MeshError FIELD_INVALID when it holds no record of a version."""
    version = recorded(folder)
    found = {}
    for name, ref in version.artifacts.items():
        found[name] = await asyncio.to_thread(_compared, folder / name, ref)
    for path in sorted(folder.iterdir()):
        if path.name not in version.artifacts and not path.name.startswith("."):
            found[path.name] = "is no part of the version"
    return _verdict(version, found, signers(version, keyring := await known_keyring()), keyring is not None)


def recorded(folder: Path) -> VersionInfo:
    """What the record in a pulled folder says; FIELD_INVALID without one, MODEL_CORRUPT when it is damaged."""
    path = folder / RECORD
    if not path.is_file():
        raise field_error("model", f"{folder} holds no {RECORD}, which `models pull` writes")
    with path.open("rb") as file:
        return version_of(VersionRecord.from_json(file.read(MAX_RECORD_BYTES + 1)))


def version_of(record: VersionRecord) -> VersionInfo:
    """A record as the version that it was made of."""
    return VersionInfo(
        model=record.model,
        version=record.version,
        parent=record.parent,
        artifacts={name: ArtifactRef(name, one.sha256, one.size_bytes) for name, one in record.artifacts.items()},
        created_by=record.created_by,
        description=record.description,
        aliases=record.aliases,
        create_time=record.create_time,
        lineage=record.lineage,
        signatures=record.signatures,
    )


async def _verify_version(reference: str) -> Verdict:
    async with channels() as opened:
        # Without trust: what is wrong shall be told, not stop the telling.
        registry = RegistryClient(opened)
        version = await find_version(registry, reference)
        found = {}
        with tempfile.TemporaryDirectory(prefix="splitmesh-verify-") as scratch:
            for name, ref in version.artifacts.items():
                found[name] = await _pulled(registry, ref, Path(scratch, "content"))
        keyring = await known_keyring(registry)
        return _verdict(version, found, signers(version, keyring), keyring is not None)


async def _pulled(registry: RegistryClient, ref: ArtifactRef, path: Path) -> str:
    """The transfer compares the digest; what it says is the finding."""
    try:
        with transfer(ref.name) as on_progress:
            await registry.pull_to_file(ref, path, on_progress=on_progress)
    except MeshError as error:
        if error.reason not in (Reason.DIGEST_MISMATCH, Reason.ARTIFACT_NOT_FOUND, Reason.PROTOCOL_VIOLATION):
            raise
        return f"{error.reason.value}: {error.message}"
    path.unlink()
    return RIGHT


def _compared(path: Path, ref: ArtifactRef) -> str:
    if path.is_symlink() or not path.is_file():
        return "is missing"
    sha256, size_bytes = digest_of(path)
    if (sha256, size_bytes) != (ref.sha256, ref.size_bytes):
        return f"{Reason.DIGEST_MISMATCH.value}: {size_bytes} bytes with SHA-256 {sha256}"
    return RIGHT


def _verdict(version: VersionInfo, found: Mapping[str, str], signed: list[Signer], verified: bool) -> Verdict:
    return Verdict(version.model, version.version, found, signed, worst(signed) is None if verified else None)


def _conclude(found: Verdict) -> None:
    """Leave with exit code 1 when something is wrong."""
    wrong = {name: problem for name, problem in found.artefacts.items() if problem != RIGHT}
    if wrong:
        first = next(iter(wrong))
        text = f"{len(wrong)} of {len(found.artefacts)} artefacts are wrong; {first} {wrong[first]}"
        refuse(MeshError(Reason.DIGEST_MISMATCH, text))
    if found.trusted is None:
        print(f"note: {ENV_PREFIX}TRUST_ROOT is not set, so signatures are not verified", file=sys.stderr)
    elif (bad := worst(found.signers)) is not None:
        refuse(MeshError(Reason(bad.verdict), bad.problem))


def _require_same(version: VersionInfo, folder: Path) -> None:
    for name, ref in version.artifacts.items():
        if (problem := _compared(folder / name, ref)) != RIGHT:
            raise MeshError(Reason.DIGEST_MISMATCH, f"{folder / name} differs from the version's: {problem}")


async def _sign(registry: RegistryClient, version: VersionInfo) -> str:
    from splitmesh.client.trust import Trust

    trust = Trust.from_settings(mesh_settings())
    if trust is None or trust.signer is None:
        raise AssertionError("a signing key is set, so there is a signer")
    envelope = trust.sign_version(version)
    if envelope is None:
        raise AssertionError("a signer signs")
    await registry.add_signature(version.model, version.version, envelope)
    return trust.signer.public.key_id
