"""A version in a folder or an OCI layout, and whether all of it may go into a registry."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from splitmesh.cli.connect import mesh_settings
from splitmesh.cli.importing import DEADLINE_S, MAX_MEMORY_BYTES
from splitmesh.cli.model_parts import FolderParts, folder_parts
from splitmesh.cli.models_signers import known_keyring, signers, worst
from splitmesh.cli.models_trust import version_of
from splitmesh.errors import MeshError, Reason
from splitmesh.export.files import digest_of
from splitmesh.export.oci_read import extract
from splitmesh.export.record import RECORD
from splitmesh.kernel.jobs import run_job
from splitmesh.model.manifest import MANIFEST

if TYPE_CHECKING:
    from splitmesh.convert.report import ImportReport

FORMAT = "version folder"
ONNX = ".onnx"
_ALL_THE_SAME = "--unsigned takes it in all the same, and your signature is what counts then"


@dataclass(frozen=True, slots=True)
class VersionFolder:
    """What a folder holds and what is to be said of it."""

    parts: FolderParts
    report: ImportReport


def is_version_folder(path: Path) -> bool:
    """Whether it was written by ``models pull`` or ``split``."""
    return path.is_dir() and (path / MANIFEST).is_file()


def unpacked(reference: str, folder: Path) -> None:
    """``LAYOUT`` or ``LAYOUT:TAG`` into ``folder``; raises as :func:`splitmesh.export.oci_read.extract`."""
    layout, _, tag = reference.rpartition(":")
    if not layout or Path(reference).is_dir():
        layout, tag = reference, ""
    extract(Path(layout), tag, folder)


async def examine_folder(folder: Path, source: str, *, unsigned: bool) -> VersionFolder:
    """Every model file read in a child process with limits, every digest and signature of the record compared.

    What is refused is in the report; where there is a trust root also a folder whose record has no good signature, unless
    ``unsigned`` allows one without any signature, or without a record: it was never in a registry, or somebody took the record
    away. Raises what :func:`folder_parts` raises.
    """
    from splitmesh.convert.report import ImportReport

    parts = await asyncio.to_thread(folder_parts, folder)
    report = ImportReport(source, FORMAT)
    for name, path in parts.files.items():
        if path.suffix == ONNX:
            report = _with(report, name, await _examined(path), parts)
    problem = await _problem(parts, unsigned)
    return VersionFolder(parts, replace(report, refusal=report.refusal or problem))


async def _examined(path: Path) -> ImportReport:
    from splitmesh.convert.formats import ModelFormat
    from splitmesh.convert.work import examine

    with tempfile.TemporaryDirectory(prefix="splitmesh-import-") as scratch:
        found: ImportReport = await run_job(
            examine,
            *(path, ModelFormat.ONNX, path, Path(scratch, "log")),
            deadline_s=DEADLINE_S,
            max_memory_bytes=MAX_MEMORY_BYTES,
        )
    return found


def _with(report: ImportReport, name: str, found: ImportReport, parts: FolderParts) -> ImportReport:
    """The report of the version with that of one more file; the figures are those of the whole model."""
    told = tuple(replace(one, where=_in(name, one.where)) for one in found.unsupported)
    report = replace(report, unsupported=(*report.unsupported, *told))
    if name == parts.manifest.whole.artifact:
        report = replace(
            report,
            size_bytes=found.size_bytes,
            operators=found.operators,
            opset=found.opset,
            inputs=found.inputs,
            outputs=found.outputs,
        )
    if found.refusal is not None and report.refusal is None:
        refusal = MeshError(found.refusal.reason, f"{name}: {found.refusal.message}", metadata={"artifact": name})
        return replace(report, refusal=refusal)
    return report


def _in(name: str, where: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name}: {one}" for one in where) or (name,)


async def _problem(parts: FolderParts, unsigned: bool) -> MeshError | None:
    """What is wrong with the files against their record, or with its signatures where there is a trust root."""
    record = parts.record
    if record is None:
        return None if unsigned or mesh_settings().trust_root is None else _without_record()
    for name, wanted in record.artifacts.items():
        if await asyncio.to_thread(digest_of, parts.files[name]) != (wanted.sha256, wanted.size_bytes):
            text = f"{name} is not what {RECORD} says; delete that file to import what is here as something new"
            return MeshError(Reason.DIGEST_MISMATCH, text, metadata={"artifact": name})
    if unsigned and not record.signatures:
        return None
    try:
        keyring = await known_keyring()
    except MeshError as error:
        return error
    bad = None if keyring is None else worst(signers(version_of(record), keyring))
    if bad is None:
        return None
    hint = "" if record.signatures else f"; {_ALL_THE_SAME}"
    return MeshError(Reason(bad.verdict), f"{bad.problem}{hint}")


def _without_record() -> MeshError:
    return MeshError(
        Reason.SIGNATURE_MISSING,
        f"there is no {RECORD} and so no signature, as in a folder of `split --out`, or where somebody took it away; "
        f"{_ALL_THE_SAME}",
    )
