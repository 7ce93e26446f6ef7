"""Runs a recipe: divides the samples once, applies the steps in order, keeps each finished one, measures what came out.

Interrupted anywhere, it goes on behind the last finished step when it is run again with the same folder; a step that
another recipe, other samples or another version left there is not taken for one of these. Knows no registry and no
process; ``child.py`` is what a child process is given.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from splitmesh.compress.kept import Kept, load_folder, save_folder, storage_errors
from splitmesh.compress.keys import digest, step_keys
from splitmesh.compress.needs import check, start
from splitmesh.compress.recipe import Bottleneck, Recipe, step_text
from splitmesh.compress.report import Report, StepReport
from splitmesh.compress.work import Apply, Context, Progress, Samples, Work
from splitmesh.errors import MeshError, Reason
from splitmesh.model.calibration import Calibration
from splitmesh.model.manifest import DEFERRAL, MANIFEST, OUTCOMES, REPORT, UNUSUAL, Manifest
from splitmesh.runtime.timing import host_text

__all__ = ["RESULT", "Finished", "check", "over_budget", "run", "run_held", "steps_done"]

STEPS: dict[str, str] = {
    "prune": "splitmesh.compress.prune:apply",
    "distil": "splitmesh.compress.train.distil:apply",
    "fp16": "splitmesh.compress.precision:apply_fp16",
    "int8": "splitmesh.compress.precision:apply_int8",
    "split": "splitmesh.compress.cutting:apply_split",
    "int8-cut": "splitmesh.compress.cutting:apply_quantise",
    "bottleneck": "splitmesh.compress.bottleneck:apply",
    "exits": "splitmesh.compress.exits:apply",
    "leakage": "splitmesh.compress.leakage:apply",
}
"""Every step's function, ``module:name``; imported when used, because some of them need torch."""

WEIGHTS = {"prune": 3.0, "distil": 20.0, "fp16": 1.0, "int8": 3.0, "split": 1.0, "int8-cut": 3.0, "bottleneck": 4.0}
"""How long steps take, about, against each other; what is not here: 3."""
_WEIGHT, _TRAINED_WEIGHT = 3.0, 20.0

RESULT = "result"
"""The folder of the finished version: everything that is to be registered, as files."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A recipe's outcome in memory."""

    work: Work
    report: Report

    @property
    def outcomes(self) -> bytes | None:
        """``calibration_outcomes.safetensors``; None without an exit."""
        return self.work.artifacts.get(OUTCOMES)

    def artifacts(self) -> dict[str, bytes]:
        """Every file of the version, by name; calibration samples are not among them."""
        return {
            **self.work.artifacts,
            MANIFEST: self.work.manifest.to_json().encode(),
            REPORT: self.report.to_json(),
        }

    def error(self) -> MeshError | None:
        """MeshError BUDGET_EXCEEDED for a result that must not be registered; None within the budget."""
        return over_budget(self.report)


def run(
    folder: Path,
    work: Work,
    calibration: Calibration,
    recipe: Recipe,
    *,
    model: str,
    threads: int = 1,
    progress: Progress,
) -> Finished:
    """Apply a recipe, going on behind the last finished step in ``folder``.

    Args:
        folder: of this recipe alone; made when missing, grows to about the version's size per step that changes it.
        work: the version as it is registered, see ``needs.start`` for the state that the first step finds.
        calibration: the samples; divided by the recipe's seed and hold-out share.
        recipe: what to do.
        model: a name for the report.
        threads: of every session and of torch.
        progress: told ``"int8: calibrate"`` and the share of the whole recipe.

    Raises what ``check`` raises before anything is done; CALIBRATION_INSUFFICIENT, STORAGE_FULL, SERVICE_UNAVAILABLE
    (another process works in the folder) and the steps' own MeshErrors. A result over its budget raises nothing, see
    ``Finished.error``.
    """
    check(work.manifest, recipe, calibration)
    with Kept(folder).alone():
        return run_held(folder, work, calibration, recipe, model=model, threads=threads, progress=progress)


def run_held(
    folder: Path,
    work: Work,
    calibration: Calibration,
    recipe: Recipe,
    *,
    model: str,
    threads: int = 1,
    progress: Progress,
) -> Finished:
    """:func:`run` for who holds the folder already (``Kept.alone``)."""
    check(work.manifest, recipe, calibration)
    with storage_errors():
        return _run(folder, work, calibration, recipe, model=model, threads=threads, progress=_Rising(progress))


def _run(
    folder: Path,
    work: Work,
    calibration: Calibration,
    recipe: Recipe,
    *,
    model: str,
    threads: int,
    progress: Progress,
) -> Finished:
    kept = Kept(folder)
    progress("read the samples", 0.0)
    samples = Samples.divide(calibration, holdout_share=recipe.holdout_share, seed=recipe.seed)
    original, about = work.whole(), work.manifest
    keys = step_keys(work, calibration, recipe)
    shares = _shares(recipe)
    reports: list[StepReport] = []
    begun = False
    for number, step in enumerate(recipe.steps, start=1):
        found = None if begun else kept.load(number, keys[number])
        if found is not None:
            work, report = found
            reports.append(report)
            continue
        remarks: list[str] = []
        if not begun:
            kept.drop_from(number)
            begun = True
            if number == 1:
                work, remarks = start(work, recipe)
                if calibration.unreadable:
                    remarks.append(_unreadable(calibration.unreadable))
        context = Context(
            samples=samples,
            original=original,
            original_manifest=about,
            folder=kept.scratch(number, keys[number]),
            progress=_part(progress, step.kind, shares[number - 1], shares[number]),
            budget=recipe.budget,
            threads=threads,
            remarks=remarks,
        )
        context.progress("begin", 0.0)
        clock = time.monotonic()
        work = _parsed(_function(step.kind)(work, step, context))
        report = StepReport(
            step=step_text(step),
            seconds=time.monotonic() - clock,
            remarks=_said_once(step.kind, context.remarks),
            figures={name: value for name, value in context.figures.items() if math.isfinite(value)},
        )
        kept.save(number, keys[number], work, report)
        reports.append(report)
    kept.drop_from(len(recipe.steps) + 1)
    key = digest(keys[-1], model)
    files = None if begun else load_folder(folder / RESULT, key)
    if files is not None:
        progress("done", 1.0)
        return Finished(work, Report.from_json(files[REPORT]))
    whole_report = _measured(
        original, about, work, samples, recipe, reports, model, threads, _part(progress, "measure", shares[-1], 1.0)
    )
    finished = Finished(work, whole_report)
    save_folder(folder / RESULT, key, finished.artifacts(), like=kept.step_folder(len(recipe.steps)))
    progress("done", 1.0)
    return finished


def steps_done(folder: Path) -> int:
    """Steps of a recipe's folder that are finished, whatever runs there now."""
    return Kept(folder).done()


def over_budget(report: Report) -> MeshError | None:
    """MeshError BUDGET_EXCEEDED with what, measured and allowed of the first limit; None within the budget."""
    if not report.exceeded:
        return None
    first = report.exceeded[0]
    said = "; ".join(f"{entry.what} is {entry.measured:.4g}, allowed {entry.allowed:.4g}" for entry in report.exceeded)
    return MeshError(
        Reason.BUDGET_EXCEEDED,
        f"the result loses more than its budget on {report.holdout_samples} held-out samples: {said}",
        metadata={"what": first.what, "measured": repr(first.measured), "allowed": repr(first.allowed)},
    )


def _measured(
    original: bytes,
    about: Manifest,
    work: Work,
    samples: Samples,
    recipe: Recipe,
    steps: Sequence[StepReport],
    model: str,
    threads: int,
    progress: Progress,
) -> Report:
    from splitmesh.compress.measure import exceeded, measure  # opens sessions and codecs: not needed to check a recipe

    found = measure(original, about, work, samples, threads=threads, progress=progress)
    return Report(
        model=model,
        steps=tuple(steps),
        seed=recipe.seed,
        fit_samples=len(samples.fit),
        validation_samples=len(samples.validation),
        holdout_samples=len(samples.holdout),
        labelled=samples.calibration.labels is not None,
        budget=recipe.budget,
        exceeded=exceeded(recipe.budget, found),
        accuracy_before=found.accuracy_before,
        agreement=found.agreement,
        accuracy=found.accuracy,
        output_error=found.output_error,
        points=tuple(found.points),
        exits=tuple(found.exits),
        leakage=work.manifest.leakage,
        size_bytes=dict(found.size_bytes),
        latency_ms=dict(found.latency_ms),
        threads=threads,
        host=host_text(),
    )


def _said_once(kind: str, remarks: Sequence[str]) -> tuple[str, ...]:
    """Without the step's own name, beside which they are read, and without repetitions."""
    return tuple(dict.fromkeys(remark.removeprefix(f"{kind}: ") for remark in remarks))


def _unreadable(count: int) -> str:
    said = "1 picture" if count == 1 else f"{count} pictures"
    return f"{said} could not be read and {'was' if count == 1 else 'were'} left out"


def _function(kind: str) -> Apply:
    module, _, name = STEPS[kind].partition(":")
    try:
        found: Apply = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "splitmesh":
            raise
        raise MeshError(
            Reason.EXTRA_MISSING,
            f"step {kind} needs {error.name}, which is not installed: install splitmesh[train]",
            metadata={"extra": "train", "steps": kind},
        ) from error
    return found


def _parsed(work: Work) -> Work:
    """Through the manifest's parser once more, since ``model_copy`` checks nothing; MODEL_INCOMPLETE for a lost file."""
    manifest = Manifest.from_json(work.manifest.to_json())
    missing = set(manifest.artifacts()) - set(work.artifacts)
    if missing:
        raise MeshError(Reason.MODEL_INCOMPLETE, f"a step lost {sorted(missing)}")
    used = {*manifest.artifacts(), *((OUTCOMES, DEFERRAL, UNUSUAL) if manifest.exit is not None else ())}
    return Work(manifest, {name: content for name, content in work.artifacts.items() if name in used})


def _shares(recipe: Recipe) -> list[float]:
    """Where each step begins, of the whole; one more entry for the measuring."""
    weights = [
        _TRAINED_WEIGHT
        if isinstance(step, Bottleneck) and step.method == "trained"
        else WEIGHTS.get(step.kind, _WEIGHT)
        for step in recipe.steps
    ]
    total = sum(weights) + _WEIGHT
    return [sum(weights[:index]) / total for index in range(len(weights) + 1)]


class _Rising:
    """Progress that never goes back."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._share = 0.0

    def __call__(self, step: str, share: float) -> None:
        self._share = min(1.0, max(self._share, share))
        self._progress(step, self._share)


def _part(progress: Progress, kind: str, begin: float, end: float) -> Progress:
    def part(step: str, share: float) -> None:
        text = step if step.startswith(f"{kind}:") else f"{kind}: {step}"
        progress(text, begin + (end - begin) * min(1.0, max(0.0, share)))

    return part
