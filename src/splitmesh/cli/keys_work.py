"""What ``splitmesh keys`` does: keys in files, and the next keyring made, signed and pushed."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from splitmesh.cli.connect import channels, mesh_settings
from splitmesh.client.registry_calls import RegistryCalls
from splitmesh.client.trust import Trust, trust_folder
from splitmesh.durable import make_folders, sync_folder
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.config import ENV_PREFIX
from splitmesh.trust.envelope import Envelope
from splitmesh.trust.keyring import Keyring, sign_keyring, version_of
from splitmesh.trust.keys import PublicKey, SigningKey, public_keys
from splitmesh.trust.ring_changes import first_keyring, with_key, with_roots, without_key
from splitmesh.trust.trusted_key import TrustedKey

TRIES = 2
"""Somebody else may change the keyring at the same time."""


def make_key(file: Path) -> tuple[str, Path]:
    """A new key's id and the file of its public half. FIELD_INVALID: a file is there already, or cannot be written."""
    key, public = SigningKey.generate(), file.with_name(f"{file.name}.pub")
    try:
        make_folders(file.parent)
    except OSError as error:
        raise field_error("file", f"{file.parent} cannot be made: {error.strerror}") from error
    if public.exists():
        raise field_error("file", f"{public} is there already")
    _write_new(file, key.to_pem(), 0o600)
    _write_new(public, key.public.to_pem(), 0o644)
    return key.public.key_id, public


def ids_in(file: Path) -> list[str]:
    """The ids of a private key or of public keys; FIELD_INVALID."""
    pem = _read(file)
    if b"PRIVATE KEY" in pem:
        return [SigningKey.from_pem(pem).public.key_id]
    return [key.key_id for key in public_keys(pem)]


async def begin(root_files: Sequence[Path], threshold: int, pin: Path | None) -> Keyring:
    """The first keyring, pushed; where these roots have keyrings on this machine: those, to a registry that lost them.

    KEYRING_STALE: the registry has one.
    """
    roots = _read_keys(root_files)
    publics = [key.public for key in roots]
    trust = Trust(publics, trust_folder(mesh_settings()))
    ring = trust.keyring if trust.keyring_version else first_keyring(publics, threshold)
    _pin(ring.roots, pin)
    async with channels() as opened:
        registry = RegistryCalls(opened)
        if not trust.keyring_version:
            await registry.put_keyring(sign_keyring(ring, roots))
            await trust.refresh(registry)
        elif not await restore(registry, trust):
            raise MeshError(Reason.KEYRING_STALE, f"the registry has keyring {ring.version} of these roots already")
    return ring


async def restore(registry: RegistryCalls, trust: Trust) -> int:
    """How many keyrings the registry lacked that are kept here, as after a backup came back; it has them again.

    Raises:
        MeshError: KEYRING_STALE, it was changed after it came back, so that there are two chains; or what it lacks begins
            before what is kept here.
    """
    there = await _all(registry)
    kept = {version_of(envelope): envelope for envelope in trust.kept_keyrings()}
    for version, envelope in there.items():
        if version in kept and Envelope.from_json(kept[version]).payload != Envelope.from_json(envelope).payload:
            raise MeshError(
                Reason.KEYRING_STALE,
                f"keyring {version} of the registry is another one than this machine has seen: it was set back and changed "
                "since. Nobody who has seen more follows it: give it a newer backup, or rotate it to a new root with an "
                "empty XDG_STATE_HOME, revoke again what was revoked, and pin that root everywhere",
                metadata={"version": str(version)},
            )
    has = max(there, default=0)
    lacking = [envelope for version, envelope in kept.items() if version > has]
    if there and lacking and version_of(lacking[0]) > has + 1:
        raise MeshError(
            Reason.KEYRING_STALE,
            f"the registry lacks keyrings from {has + 1} on, and this machine keeps those from {version_of(lacking[0])} on "
            f"of the pinned roots: name the roots before them in {ENV_PREFIX}TRUST_ROOT for one splitmesh keys list, where "
            "keyrings of theirs were made",
            metadata={"version": str(version_of(lacking[0])), "newest": str(has)},
        )
    given = await _give_back(registry, lacking, empty=not there)
    if given:
        print(
            f"note: the registry lacked {given} newer keyrings that this machine has seen; they are there again",
            file=sys.stderr,
        )
    return given


async def _give_back(registry: RegistryCalls, lacking: Sequence[bytes], *, empty: bool) -> int:
    """How many it took, oldest first. An empty registry begins with those of the roots that it pins itself."""
    given = 0
    for envelope in lacking:
        try:
            await registry.put_keyring(envelope)
        except MeshError as error:
            of_other_roots = empty and not given and error.reason is Reason.SIGNATURE_INVALID
            if not of_other_roots or envelope is lacking[-1]:
                raise
        else:
            given += 1
    return given


async def _all(registry: RegistryCalls) -> dict[int, bytes]:
    """Every keyring of the registry by version, not verified."""
    there: dict[int, bytes] = {}
    newest = 0
    while found := await registry.keyrings(newest):
        there.update((version_of(envelope), envelope) for envelope in found)
        if max(there) <= newest:
            raise MeshError(
                Reason.PROTOCOL_VIOLATION, f"asked for keyrings after {newest}, the registry tells older ones"
            )
        newest = max(there)
    return there


async def newest() -> Keyring:
    """Verified from the pinned roots; KEY_UNKNOWN: there is none.

    Of a registry that has another chain: the newest that this machine has seen, and on standard error why.
    """
    trust = _trust()
    async with channels() as opened:
        try:
            await _catch_up(RegistryCalls(opened), trust)
        except MeshError as error:
            if error.reason is not Reason.KEYRING_STALE or not trust.keyring_version:
                raise
            print(f"warning: this is what this machine has seen, not the registry: {error.message}", file=sys.stderr)
    return trust.keyring


async def trust_key(
    root_files: Sequence[Path], name: str, public: Path, models: Sequence[str], datasets: Sequence[str]
) -> Keyring:
    """A key trusted, or for something else from now on; KEY_REVOKED: it was revoked."""
    key = PublicKey.from_pem(_read(public))
    since = datetime.now(UTC).replace(microsecond=0)
    trusted = TrustedKey(key, name, models=tuple(models), datasets=tuple(datasets), since=since)
    return await _change(root_files, lambda ring: with_key(ring, trusted))


async def end_key(root_files: Sequence[Path], wanted: str, *, revoked: bool, reason: str) -> Keyring:
    """A key retired or revoked; KEY_UNKNOWN, FIELD_INVALID."""
    until = datetime.now(UTC).replace(microsecond=0)
    return await _change(root_files, lambda ring: without_key(ring, wanted, until, revoked=revoked, reason=reason))


async def replace_roots(
    root_files: Sequence[Path], new_files: Sequence[Path], threshold: int, pin: Path | None
) -> Keyring:
    """Other roots, signed by the old and the new."""
    roots = [key.public for key in _read_keys(new_files)]
    _pin(roots, pin)  # first: a file in the way must not leave new roots that nobody has pinned
    ring = await _change([*root_files, *new_files], lambda ring: with_roots(ring, roots, threshold))
    async with channels() as opened:
        # Kept for who pins the new roots from now on, with all that led to them.
        await Trust(roots, trust_folder(mesh_settings())).refresh(RegistryCalls(opened))
    return ring


async def _change(root_files: Sequence[Path], make: Callable[[Keyring], Keyring]) -> Keyring:
    """The next keyring, pushed; made again when somebody else was faster."""
    roots = _read_keys(root_files)
    async with _trusted() as (registry, trust):
        for tries_left in reversed(range(TRIES)):
            ring = make(trust.keyring)
            envelope = sign_keyring(ring, roots)
            trust.keyring.next(envelope)  # what the registry would refuse is told at once, and better
            try:
                await registry.put_keyring(envelope)
            except MeshError as error:
                if error.reason is not Reason.KEYRING_STALE or not tries_left:
                    raise
            await trust.refresh()
            if trust.keyring == ring:
                return ring
    raise MeshError(Reason.KEYRING_STALE, "somebody else changes the keyring as well; look at it and try again")


@asynccontextmanager
async def _trusted() -> AsyncIterator[tuple[RegistryCalls, Trust]]:
    """The registry, and the newest keyring that follows from the pinned roots."""
    trust = _trust()
    async with channels() as opened:
        registry = RegistryCalls(opened)
        await _catch_up(registry, trust)
        trust.attach(registry)
        yield registry, trust


def _trust() -> Trust:
    settings = mesh_settings()
    if settings.trust_root is None:
        raise field_error(f"{ENV_PREFIX}TRUST_ROOT", "is not set; it names the file with the public keys of the roots")
    trust = Trust.from_settings(settings)
    assert trust is not None
    return trust


async def _catch_up(registry: RegistryCalls, trust: Trust) -> None:
    """Both know the newest; raises as :func:`restore` and :meth:`Trust.refresh`."""
    await restore(registry, trust)
    await trust.refresh(registry)


def _read_keys(files: Sequence[Path]) -> list[SigningKey]:
    """Private keys, each once."""
    keys = [SigningKey.from_pem(_read(file)) for file in files]
    return list({key.public.key_id: key for key in keys}.values())


def _pin(roots: Sequence[PublicKey], file: Path | None) -> None:
    """For whoever shall trust these roots; the same file again is fine."""
    if file is None:
        return
    content = b"".join(root.to_pem() for root in roots)
    if not (file.is_file() and file.read_bytes() == content):
        _write_new(file, content, 0o644)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise field_error("file", f"{file} cannot be read: {error.strerror}") from error


def _write_new(file: Path, content: bytes, mode: int) -> None:
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        sync_folder(file.parent)
    except FileExistsError as error:
        raise field_error("file", f"{file} is there already") from error
    except OSError as error:
        raise field_error("file", f"{file} cannot be written: {error.strerror}") from error
