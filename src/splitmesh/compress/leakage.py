"""The step ``leakage``: how much of the picture can be told from what crosses, measured by rebuilding it.

A split version is measured at its cuts with what it really sends; one that is whole at some of the cuts it offers. The
figures go into the manifest, where the planner finds them. A measure, not a promise: no attack of a fixed budget shows
what a longer one could see. Each finished cut is kept, so that an interrupted step goes on with the next one.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from splitmesh.compress.crossing import Crossing, Reader, of_cut, of_hops, spread
from splitmesh.compress.recipe import Leakage
from splitmesh.compress.work import Context, Work
from splitmesh.errors import MeshError, Reason
from splitmesh.model.cuts import list_cuts
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.manifest import CutLeakage, Manifest

SHOWN = 6
"""Samples on the picture of a cut."""
REPORT_EVERY = 10
"""Training steps."""


class _Kept(BaseModel):
    """A finished cut, as it is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    leakage: CutLeakage


def apply(work: Work, step: Leakage, context: Context) -> Work:
    """The same version with ``manifest.leakage``; ``cut_<i>.png`` in the context's folder shows entry ``i``.

    Raises MeshError MODEL_INCOMPLETE (the model takes no pictures, or offers no cut), EXTRA_MISSING (no torch), and what
    cutting and running raise.
    """
    if work.manifest.preprocess is None or context.samples.calibration.pictures is None:
        raise MeshError(
            Reason.MODEL_INCOMPLETE,
            "leakage rebuilds pictures, but the manifest does not say how a picture becomes the model's input",
        )
    if find_spec("torch") is None:
        raise MeshError(
            Reason.EXTRA_MISSING,
            "leakage trains a decoder, which needs torch: install splitmesh[train]",
            metadata={"extra": "train"},
        )
    crossings = list(_crossings(work, step.cuts))
    found = [_measured(number, len(crossings), crossing, step, context) for number, crossing in enumerate(crossings)]
    _tell(found, context)
    manifest = work.manifest.model_copy(update={"leakage": (*found, *_still_true(work, found, context))})
    return Work(Manifest.from_json(manifest.to_json()), work.artifacts)


def _crossings(work: Work, most: int) -> Iterator[Crossing]:
    if work.manifest.split is not None:
        yield from of_hops(work)
        return
    graph = Graph(load_model(work.whole()))
    cuts = spread(list_cuts(graph), most)
    if not cuts:
        raise MeshError(Reason.MODEL_INCOMPLETE, "the model offers no cut, so nothing can leak")
    for cut in cuts:
        yield of_cut(graph, cut)


def _measured(number: int, count: int, crossing: Crossing, step: Leakage, context: Context) -> CutLeakage:
    """Of one cut, unless an earlier run has finished it."""
    key = _key(crossing, step, context)
    kept, picture = context.folder / f"cut_{number}.json", context.folder / f"cut_{number}.png"
    name = f"{'+'.join(crossing.cut)} ({number + 1} of {count})"
    context.progress(name, number / count)
    if kept.is_file() and picture.is_file():
        try:
            known = _Kept.model_validate_json(kept.read_bytes())
        except ValidationError:
            known = None
        if known is not None and known.key == key:
            return known.leakage

    from splitmesh.compress.train.leakage import rebuild

    def progress(done: int) -> None:
        if done % REPORT_EVERY == 0:
            context.progress(name, (number + done / step.steps) / count)

    samples = context.samples
    pictures = samples.calibration.pictures
    assert pictures is not None, "checked in apply"
    reader = Reader(crossing, samples.calibration, threads=context.threads)
    try:
        rebuilt = rebuild(
            reader,
            pictures,
            samples.fit,
            samples.validation,
            samples.holdout,
            steps=step.steps,
            seed=samples.seed,
            threads=context.threads,
            shown=SHOWN,
            progress=progress,
        )
    finally:
        reader.close()
    leakage = CutLeakage.model_validate(
        {
            "cut": crossing.cut,
            "codec": crossing.codec,
            "ssim": max(0.0, rebuilt.ssim),
            "psnr_db": rebuilt.psnr_db,
            "baseline_ssim": max(0.0, rebuilt.baseline_ssim),
            "samples": rebuilt.samples,
            "fit_samples": rebuilt.fit_samples,
            "steps": step.steps,
        }
    )
    picture.write_bytes(side_by_side(pictures[rebuilt.shown], rebuilt.pictures))
    # Last, and whole or not at all: its presence says that the cut is done.
    fresh = kept.with_suffix(".new")
    fresh.write_text(_Kept(key=key, leakage=leakage).model_dump_json())
    fresh.replace(kept)
    return leakage


def side_by_side(originals: NDArray[np.uint8], rebuilt: NDArray[np.uint8]) -> bytes:
    """A PNG: the originals ``[n, height, width, 1 or 3]`` in the upper row, what was made of each below it."""
    rows = [np.concatenate(list(pictures), axis=1) for pictures in (originals, rebuilt)]
    sheet = np.concatenate(rows, axis=0)
    buffer = io.BytesIO()
    Image.fromarray(sheet[:, :, 0] if sheet.shape[2] == 1 else sheet).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _tell(found: list[CutLeakage], context: Context) -> None:
    for number, entry in enumerate(found):
        context.figures[f"ssim_{number}"] = entry.ssim
        context.figures[f"baseline_ssim_{number}"] = entry.baseline_ssim
        context.figures[f"psnr_db_{number}"] = entry.psnr_db
        seen = "no more than the mean picture shows" if entry.ssim <= entry.baseline_ssim else "of 1"
        context.remark(
            f"{' + '.join(entry.cut)} ({entry.codec}): pictures rebuilt with SSIM {entry.ssim:.3f}, {seen} (the mean "
            f"picture has {entry.baseline_ssim:.3f}), PSNR {entry.psnr_db:.1f} dB, n = {entry.samples}, after "
            f"{entry.steps} steps on {entry.fit_samples} other pictures"
        )
    context.remark("A longer or cleverer attack can only see more: low leakage is a measurement, not a guarantee.")


def _still_true(work: Work, found: list[CutLeakage], context: Context) -> list[CutLeakage]:
    """Earlier measurements of other cuts, where the whole is still the one they were taken of."""
    if work.whole() != context.original:
        return []
    done = {(frozenset(entry.cut), entry.codec) for entry in found}
    return [
        entry
        for entry in work.manifest.leakage
        # An earlier bottleneck or rounding is not what the version sends now.
        if entry.codec == "float32" and (frozenset(entry.cut), entry.codec) not in done
    ]


def _key(crossing: Crossing, step: Leakage, context: Context) -> str:
    """The same for the same measurement."""
    samples = context.samples
    pictures = samples.calibration.pictures
    assert pictures is not None, "checked in apply"
    digest = hashlib.sha256(f"{step.steps} {samples.seed}".encode())
    for part in (*crossing.parts(), pictures.tobytes()):
        digest.update(hashlib.sha256(part).digest())
    for rows in (samples.fit, samples.validation, samples.holdout):
        digest.update(hashlib.sha256(rows.tobytes()).digest())
    return digest.hexdigest()
