"""Recipes as a whole: what runs, what is kept, what is done again, what is refused, and what comes out."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitmesh.compress import child, engine, kept, needs
from splitmesh.compress.child import read_work, run_in
from splitmesh.compress.engine import Finished, check, run, steps_done
from splitmesh.compress.recipe import Budget, Recipe, make_recipe, parse_step, step_text
from splitmesh.compress.report import Report
from splitmesh.compress.work import Context, Work
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.jobs import run_job
from splitmesh.model.artifacts import quantise_split, split_bytes
from splitmesh.model.calibration import Calibration, pack_calibration, unpack_calibration
from splitmesh.model.manifest import (
    HEAD,
    MANIFEST,
    REPORT,
    TAIL,
    WHOLE,
    CutLeakage,
    Manifest,
    Quantisation,
    TensorInfo,
)
from splitmesh.runtime import open_session
from tests.integration.small_model import CUT, LABELS, small_manifest, small_model, small_pictures

ROOT = Path(__file__).parents[2]
SAMPLES = 120


def no_progress(step: str, share: float) -> None:
    """Nobody is told."""


@pytest.fixture
def calibration() -> Calibration:
    return unpack_calibration(pack_calibration(small_pictures(SAMPLES)), small_manifest())


def whole_work() -> Work:
    return Work(small_manifest(), {WHOLE: small_model()})


def split_work(*, cut: str = CUT) -> Work:
    manifest, artifacts = split_bytes(small_model(), [cut], preprocess=small_manifest().preprocess, labels=LABELS)
    return Work(manifest, artifacts)


def recipe(*steps: str, **settings: Any) -> Recipe:
    return make_recipe([parse_step(step) for step in steps], **settings)


class Steps:
    """Small steps that do real work and can be told to fail; each call is written down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.fail_at = ""
        self.contexts: dict[str, Context] = {}
        for kind in ("fp16", "split", "int8-cut"):
            monkeypatch.setitem(engine.STEPS, kind, f"{__name__}:{kind}")
        monkeypatch.setattr(engine, "_function", lambda kind: getattr(self, kind.replace("-", "_")))

    def _called(self, kind: str, context: Context) -> None:
        self.calls.append(kind)
        self.contexts[kind] = context
        (context.folder / "checkpoint").write_text(kind)
        context.progress("half", 0.5)
        if self.fail_at == kind:
            raise MeshError(Reason.CUT_INVALID, f"{kind} was told to fail")

    def fp16(self, work: Work, step: Any, context: Context) -> Work:
        self._called("fp16", context)
        context.remark("another model of the same kind")
        return Work(work.manifest, {**work.artifacts, WHOLE: small_model(note="made by a step")})

    def split(self, work: Work, step: Any, context: Context) -> Work:
        self._called("split", context)
        about = work.manifest
        manifest, artifacts = split_bytes(work.whole(), step.at, preprocess=about.preprocess, labels=about.labels)
        context.figures["segments"] = float(len(manifest.segments()) - 1)
        return Work(manifest, artifacts)

    def int8_cut(self, work: Work, step: Any, context: Context) -> Work:
        self._called("int8-cut", context)
        feeds = context.samples.feeds(context.samples.fit)
        manifest, artifacts = quantise_split(work.manifest, work.artifacts, feeds)
        return Work(manifest, artifacts)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


THREE = ("fp16", f"split:at={CUT}", "int8-cut")


def apply(folder: Path, calibration: Calibration, plan: Recipe | None = None, work: Work | None = None) -> Finished:
    plan = plan or recipe(*THREE)
    return run(folder, work or whole_work(), calibration, plan, model="small", progress=no_progress)


def test_steps_run_in_order_and_the_result_is_measured_with_its_own_files(
    tmp_path: Path, calibration: Calibration, steps: Steps
) -> None:
    told: list[tuple[str, float]] = []
    finished = run(
        tmp_path,
        whole_work(),
        calibration,
        recipe(*THREE),
        model="small",
        progress=lambda step, share: told.append((step, share)),
    )
    assert steps.calls == ["fp16", "split", "int8-cut"]
    report = finished.report
    assert [step.step for step in report.steps] == list(THREE)
    assert report.steps[0].remarks == ("another model of the same kind",)
    assert report.steps[1].figures == {"segments": 2.0}
    parts = (report.fit_samples, report.validation_samples, report.holdout_samples)
    assert sum(parts) == SAMPLES
    assert report.holdout_samples == 36
    assert report.agreement is not None
    assert report.agreement.n == 36
    assert report.size_bytes[HEAD] == len(finished.artifacts()[HEAD])
    assert set(finished.artifacts()) == {WHOLE, HEAD, TAIL, MANIFEST, REPORT}
    assert finished.error() is None
    assert (finished.outcomes, Report.from_json(finished.artifacts()[REPORT])) == (None, report)

    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    names = [step for step, _ in told]
    assert {"fp16: half", "split: half", "int8-cut: half"} <= set(names)
    assert any(name.startswith("measure: ") for name in names)


def test_steps_see_the_divided_samples_the_original_model_and_their_own_folder(
    tmp_path: Path, calibration: Calibration, steps: Steps
) -> None:
    apply(tmp_path, calibration, recipe(*THREE, seed=3, holdout_share=0.4))
    contexts = list(steps.contexts.values())
    assert len({id(context.samples) for context in contexts}) == 1
    samples = contexts[0].samples
    assert (samples.seed, len(samples.holdout)) == (3, 48)
    assert not set(samples.holdout) & set(samples.made_from)
    assert {context.original for context in contexts} == {small_model()}
    assert [context.folder for context in contexts] == [tmp_path / f"work_{number}" for number in (1, 2, 3)]


def test_a_finished_recipe_is_not_run_again(tmp_path: Path, calibration: Calibration, steps: Steps) -> None:
    first = apply(tmp_path, calibration)
    steps.calls.clear()
    again = apply(tmp_path, calibration)
    assert steps.calls == []
    assert again.artifacts() == first.artifacts()


def test_an_interrupted_recipe_goes_on_behind_its_last_finished_step_with_the_checkpoint_of_the_next(
    tmp_path: Path, calibration: Calibration, steps: Steps
) -> None:
    steps.fail_at = "int8-cut"
    with pytest.raises(MeshError, match="told to fail"):
        apply(tmp_path, calibration)
    assert steps_done(tmp_path) == 2
    assert (tmp_path / "work_3" / "checkpoint").is_file()
    steps.calls.clear()
    steps.fail_at = ""
    finished = apply(tmp_path, calibration)
    assert steps.calls == ["int8-cut"]
    assert [step.step for step in finished.report.steps] == list(THREE)
    assert steps_done(tmp_path) == 3


@pytest.mark.parametrize("file", [HEAD, MANIFEST, kept.STEP, kept.DONE])
def test_a_damaged_step_and_those_behind_it_are_done_again(
    tmp_path: Path, calibration: Calibration, steps: Steps, file: str
) -> None:
    whole = apply(tmp_path, calibration)
    damaged = tmp_path / "step_2" / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0x15
    damaged.unlink()  # not through a hard link into another step
    damaged.write_bytes(content)
    steps.calls.clear()
    finished = apply(tmp_path, calibration)
    assert steps.calls == ["split", "int8-cut"]
    assert finished.work == whole.work


def test_a_step_without_its_marker_never_happened(tmp_path: Path, calibration: Calibration, steps: Steps) -> None:
    apply(tmp_path, calibration)
    (tmp_path / "step_3" / kept.DONE).unlink()
    assert steps_done(tmp_path) == 2
    steps.calls.clear()
    apply(tmp_path, calibration)
    assert steps.calls == ["int8-cut"]


def test_files_a_step_did_not_change_take_no_second_place(
    tmp_path: Path, calibration: Calibration, steps: Steps
) -> None:
    apply(tmp_path, calibration)
    assert (tmp_path / "step_2" / WHOLE).samefile(tmp_path / "step_3" / WHOLE)
    assert not (tmp_path / "step_2" / HEAD).samefile(tmp_path / "step_3" / HEAD)
    assert (tmp_path / "result" / HEAD).samefile(tmp_path / "step_3" / HEAD)


Other = Callable[[Calibration], tuple[Calibration, Recipe, Work]]

OTHERS: dict[str, tuple[Other, list[str]]] = {
    "another seed": (lambda samples: (samples, recipe(*THREE, seed=1), whole_work()), ["fp16", "split", "int8-cut"]),
    "another budget": (
        lambda samples: (samples, recipe(*THREE, budget=Budget(max_disagreement=0.5)), whole_work()),
        ["fp16", "split", "int8-cut"],
    ),
    "another cut": (lambda samples: (samples, recipe("fp16", "split:at=pooled"), whole_work()), ["split"]),
    "fewer steps": (lambda samples: (samples, recipe(*THREE[:2]), whole_work()), []),
    "other samples": (
        lambda samples: (
            unpack_calibration(pack_calibration(small_pictures(SAMPLES, seed=5)), small_manifest()),
            recipe(*THREE),
            whole_work(),
        ),
        ["fp16", "split", "int8-cut"],
    ),
    "labels": (
        lambda samples: (replace(samples, labels=np.zeros(SAMPLES, np.int64)), recipe(*THREE), whole_work()),
        ["fp16", "split", "int8-cut"],
    ),
    "another model": (
        lambda samples: (samples, recipe(*THREE), Work(small_manifest(), {WHOLE: small_model(note="other")})),
        ["fp16", "split", "int8-cut"],
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_only_steps_of_the_very_same_work_are_taken_from_the_folder(
    tmp_path: Path, calibration: Calibration, steps: Steps, other: str
) -> None:
    apply(tmp_path, calibration)
    steps.calls.clear()
    change, done_again = OTHERS[other]
    samples, plan, work = change(calibration)
    seen: list[bool] = []
    inner = steps._called

    def looked(kind: str, context: Context) -> None:
        seen.append((context.folder / "checkpoint").exists())
        inner(kind, context)

    steps._called = looked  # type: ignore[method-assign]
    finished = apply(tmp_path, samples, plan, work)
    assert steps.calls == done_again
    assert not any(seen)  # a checkpoint of other work is gone
    assert [step.step for step in finished.report.steps] == [step_text(step) for step in plan.steps]
    assert steps_done(tmp_path) == len(plan.steps)


def test_a_full_disk_is_an_error_that_says_so_and_the_recipe_goes_on_when_there_is_room(
    tmp_path: Path, calibration: Calibration, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync
    with monkeypatch.context() as patch:

        def full(handle: int) -> None:
            if steps.calls[-1:] == ["split"]:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(handle)

        patch.setattr(os, "fsync", full)
        with pytest.raises(MeshError) as caught:
            apply(tmp_path, calibration)
    assert caught.value.reason is Reason.STORAGE_FULL
    assert steps_done(tmp_path) == 1
    assert not list(tmp_path.glob(".step*"))
    steps.calls.clear()
    apply(tmp_path, calibration)
    assert steps.calls == ["split", "int8-cut"]


def test_two_recipes_never_work_in_one_folder(
    tmp_path: Path, calibration: Calibration, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "LOCK_WAIT_S", 0.0)
    with kept.Kept(tmp_path).alone(), pytest.raises(MeshError) as caught:
        apply(tmp_path, calibration)
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
    apply(tmp_path, calibration)


def test_a_second_process_in_the_folder_leaves_the_samples_of_the_first_where_they_are(
    tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "LOCK_WAIT_S", 0.0)
    pixels = tmp_path / "run" / "spool" / "pixels.u8"
    source = {MANIFEST: small_manifest().to_json().encode(), WHOLE: small_model()}
    samples = pack_calibration(small_pictures(SAMPLES))
    with kept.Kept(tmp_path / "run").alone():
        pixels.parent.mkdir()
        pixels.write_bytes(b"of the first")
        with pytest.raises(MeshError) as caught:
            run_in(tmp_path / "run", source, samples, recipe("fp16").model_dump_json(), "m", progress=no_progress)
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
    assert pixels.read_bytes() == b"of the first"


def test_a_lock_that_was_removed_with_its_folder_is_not_taken_for_one(tmp_path: Path) -> None:
    """Two callers that both waited for it would both go on."""
    path = tmp_path / "home" / "lock"
    taken, real = [], fcntl.flock

    def removed_meanwhile(descriptor: int, how: int) -> None:
        real(descriptor, how)
        taken.append(descriptor)
        if len(taken) == 1:
            path.unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", removed_meanwhile)
        with kept.held(path):
            patch.undo()
            assert len(taken) == 2
            with pytest.raises(MeshError), kept.held(path, wait_s=0):
                pass


def test_pictures_that_were_left_out_are_in_the_report(tmp_path: Path, calibration: Calibration, steps: Steps) -> None:
    for count, said in ((1, "1 picture could not be read and was left out"), (3, "3 pictures could not be read")):
        for _ in range(2):  # also when it goes on from what is kept
            report = apply(tmp_path / str(count), replace(calibration, unreadable=count)).report
            assert report.steps[0].remarks[0].startswith(said)
    assert Report.from_json(report.to_json()) == report


def test_a_remark_is_said_once_and_without_the_steps_own_name(
    tmp_path: Path, calibration: Calibration, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    def talk(work: Work, step: Any, context: Context) -> Work:
        for text in ("fp16: much is lost", "fewer bits", "much is lost"):
            context.remark(text)
        return work

    monkeypatch.setattr(steps, "fp16", talk)
    assert apply(tmp_path, calibration).report.steps[0].remarks == ("much is lost", "fewer bits")


def test_a_figure_that_is_no_number_does_not_make_the_report_unreadable(
    tmp_path: Path, calibration: Calibration, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(work: Work, step: Any, context: Context) -> Work:
        context.figures.update(psnr_db=float("inf"), loss=float("nan"), macs=2.0)
        return Steps.fp16(steps, work, step, context)

    monkeypatch.setattr(steps, "fp16", endless)
    report = apply(tmp_path, calibration).report
    assert report.steps[0].figures == {"macs": 2.0}
    assert Report.from_json(report.to_json()) == report


def test_a_step_that_loses_a_file_of_the_version_is_found_out(
    tmp_path: Path, calibration: Calibration, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(work: Work, step: Any, context: Context) -> Work:
        made = Steps.split(steps, work, step, context)
        return Work(made.manifest, {name: data for name, data in made.artifacts.items() if name != TAIL})

    monkeypatch.setattr(steps, "split", lose)
    with pytest.raises(MeshError, match=TAIL) as caught:
        apply(tmp_path, calibration)
    assert caught.value.reason is Reason.MODEL_INCOMPLETE


def worse_model() -> bytes:
    """Answers otherwise than the small one."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_model_from_string(small_model())
    for tensor in model.graph.initializer:
        if tensor.name == "w3":
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), "w3"))
    return bytes(model.SerializeToString())


def test_a_result_over_its_budget_says_what_was_measured_and_allowed(
    tmp_path: Path, calibration: Calibration, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        steps, "fp16", lambda work, step, context: Work(work.manifest, {**work.artifacts, WHOLE: worse_model()})
    )
    plan = recipe(*THREE, budget=Budget(max_disagreement=0.1))
    finished = apply(tmp_path, calibration, plan)
    error = finished.error()
    assert error is not None
    assert error.reason is Reason.BUDGET_EXCEEDED
    assert error.metadata["what"] == "max_disagreement"
    assert float(error.metadata["allowed"]) == 0.1
    assert float(error.metadata["measured"]) > 0.3
    assert finished.report.agreement is not None
    assert float(error.metadata["measured"]) == pytest.approx(1 - finished.report.agreement.share)
    # the same from the folder
    again = apply(tmp_path, calibration, plan).error()
    assert again is not None
    assert again.metadata == error.metadata


def test_too_few_samples_are_refused_before_a_step_runs(tmp_path: Path, steps: Steps) -> None:
    few = unpack_calibration(pack_calibration(small_pictures(20)), small_manifest())
    with pytest.raises(MeshError) as caught:
        apply(tmp_path, few)
    assert caught.value.reason is Reason.CALIBRATION_INSUFFICIENT
    assert steps.calls == []


def tensors_only() -> Manifest:
    return small_manifest().model_copy(update={"preprocess": None})


def without_labels() -> Manifest:
    return small_manifest().model_copy(update={"labels": (), "task": "raw"})


def of_a_fixed_batch() -> Manifest:
    about = small_manifest()
    info = TensorInfo(name="x", dtype="float32", shape=(4, 1, 16, 16))
    return about.model_copy(update={"whole": about.whole.model_copy(update={"inputs": (info,)})})


REFUSED: dict[str, tuple[Manifest, Recipe, Reason, str]] = {
    "8 bits without a cut": (small_manifest(), recipe("int8-cut"), Reason.MODEL_INCOMPLETE, "not split"),
    "an exit without a cut": (small_manifest(), recipe("fp16", "exits"), Reason.MODEL_INCOMPLETE, "not split"),
    "an exit without classes": (
        without_labels(),
        recipe("split:at=edges", "exits"),
        Reason.MODEL_INCOMPLETE,
        "no labels",
    ),
    "an exit on an output that is not there": (
        without_labels(),
        recipe("split:at=edges", "exits:found_output=boxes"),
        Reason.FIELD_INVALID,
        "boxes",
    ),
    "a detector's exit for a classifier": (
        small_manifest(),
        recipe("split:at=edges", "exits:found_output=logits"),
        Reason.FIELD_INVALID,
        "detector",
    ),
    "leakage of tensors": (tensors_only(), recipe("leakage"), Reason.MODEL_INCOMPLETE, "pictures"),
    "disagreement without classes": (
        without_labels(),
        recipe("fp16", budget=Budget(max_disagreement=0.1)),
        Reason.MODEL_INCOMPLETE,
        "max_output_error",
    ),
    "output error with classes": (
        small_manifest(),
        recipe("fp16", budget=Budget(max_output_error=0.1)),
        Reason.FIELD_INVALID,
        "max_disagreement",
    ),
    "a fixed batch": (of_a_fixed_batch(), recipe("fp16"), Reason.MODEL_SHAPE_UNKNOWN, "exactly 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_anything_runs(case: str) -> None:
    manifest, plan, reason, text = REFUSED[case]
    with pytest.raises(MeshError, match=text) as caught:
        check(manifest, plan)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    "plan",
    [
        recipe("fp16"),
        recipe("leakage"),
        recipe("bottleneck", "exits"),
        recipe("split:at=edges", "int8-cut", "exits"),
        recipe("prune", "int8", "bottleneck:method=trained", "exits", "leakage"),
    ],
)
def test_a_whole_version_may_have_any_recipe_whose_cut_comes_before_what_needs_one(plan: Recipe) -> None:
    check(small_manifest(), plan)


def test_a_budget_of_accuracy_needs_labelled_samples(calibration: Calibration) -> None:
    plan = recipe("fp16", budget=Budget(max_accuracy_loss=0.01))
    check(small_manifest(), plan)
    with pytest.raises(MeshError, match="labels") as caught:
        check(small_manifest(), plan, calibration)
    assert caught.value.reason is Reason.CALIBRATION_INSUFFICIENT
    check(small_manifest(), plan, replace(calibration, labels=np.zeros(SAMPLES, np.int64)))


@pytest.mark.parametrize("step", ["distil", "bottleneck:method=trained", "leakage"])
def test_a_step_that_trains_is_refused_by_name_where_torch_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(needs, "find_spec", lambda name: None)
    with pytest.raises(MeshError, match=r"splitmesh\[train\]") as caught:
        check(small_manifest(), recipe(step))
    assert caught.value.reason is Reason.EXTRA_MISSING
    assert caught.value.metadata == {"extra": "train", "steps": step.partition(":")[0]}
    check(small_manifest(), recipe("bottleneck"))


def test_a_missing_package_behind_a_step_is_named(
    tmp_path: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "step_of_torch.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(engine.STEPS, "fp16", "step_of_torch:apply")
    with pytest.raises(MeshError, match="a_package_that_is_not_there") as caught:
        apply(tmp_path / "run", calibration, recipe("fp16"))
    assert caught.value.reason is Reason.EXTRA_MISSING


def test_every_step_of_a_recipe_has_a_function() -> None:
    from splitmesh.compress.recipe import KINDS

    assert engine.STEPS.keys() == KINDS.keys()


def quantised_work() -> Work:
    work = split_work()
    feeds = [{"x": np.random.default_rng(0).normal(size=(8, 1, 16, 16)).astype(np.float32)}]
    manifest, artifacts = quantise_split(work.manifest, work.artifacts, feeds)
    return Work(manifest, artifacts)


def test_a_recipe_goes_on_where_the_version_left_off() -> None:
    for work, plan in (
        (split_work(), recipe("int8-cut", "exits")),
        (split_work(), recipe("prune")),
        (quantised_work(), recipe("exits")),
        (quantised_work(), recipe("leakage")),
        (whole_work(), recipe("split:at=edges")),
    ):
        assert needs.start(work, plan) == (work, [])


def rules(work: Work) -> tuple[Quantisation, ...]:
    assert work.manifest.split is not None
    return work.manifest.split.quantisation


@pytest.mark.parametrize("plan", [recipe("int8-cut"), recipe("bottleneck"), recipe("prune", "exits")])
def test_a_recipe_that_would_undo_what_is_there_begins_with_the_whole_model_cut_again(plan: Recipe) -> None:
    work = quantised_work()
    assert rules(work)
    leakage = tuple(
        CutLeakage(
            cut=(CUT,), codec=codec, ssim=0.5, psnr_db=20.0, baseline_ssim=0.1, samples=9, fit_samples=9, steps=9
        )
        for codec in ("float32", "int8")
    )
    work = Work(work.manifest.model_copy(update={"leakage": leakage}), work.artifacts)
    begun, remarks = needs.start(work, plan)
    assert rules(begun) == ()
    assert begun.whole() == work.whole()
    assert begun.manifest.split is not None
    assert [info.name for info in begun.manifest.split.cut] == [CUT]
    assert begun.manifest.preprocess == work.manifest.preprocess
    assert begun.manifest.leakage == leakage[:1]  # what leaked through 8 bits is not true any more
    assert len(remarks) == 1
    feed = {"x": np.random.default_rng(1).normal(size=(3, 1, 16, 16)).astype(np.float32)}
    features = open_session(begun.artifacts[HEAD]).run(feed)
    logits = open_session(begun.artifacts[TAIL]).run(features)["logits"]
    assert np.allclose(logits, open_session(small_model()).run(feed)["logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("plan", [recipe("split:at=pooled"), recipe("bottleneck:at=pooled")])
def test_another_cut_than_the_versions_own_replaces_it(plan: Recipe) -> None:
    begun, remarks = needs.start(split_work(), plan)
    assert begun.manifest.split is None
    assert set(begun.artifacts) == {WHOLE}
    assert "replaced" in remarks[0]


def test_where_a_recipe_began_is_in_its_report(tmp_path: Path, calibration: Calibration, steps: Steps) -> None:
    finished = apply(tmp_path, calibration, recipe("int8-cut"), quantised_work())
    assert "cut again" in finished.report.steps[0].remarks[0]


def write_version(folder: Path, work: Work) -> None:
    folder.mkdir()
    for name, content in {**work.artifacts, MANIFEST: work.manifest.to_json().encode()}.items():
        (folder / name).write_bytes(content)


def test_a_version_is_read_from_a_folder_or_from_memory_and_what_is_missing_is_named(tmp_path: Path) -> None:
    work = split_work()
    write_version(tmp_path / "version", work)
    assert read_work(tmp_path / "version") == work
    assert read_work({**work.artifacts, MANIFEST: work.manifest.to_json().encode()}) == work
    (tmp_path / "version" / TAIL).unlink()
    with pytest.raises(MeshError, match=TAIL) as caught:
        read_work(tmp_path / "version")
    assert caught.value.reason is Reason.MODEL_INCOMPLETE
    with pytest.raises(MeshError, match=MANIFEST):
        read_work({})


def test_a_child_process_leaves_the_version_in_files_and_the_pictures_beside_them(
    tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = CutLeakage(
        cut=(CUT,), codec="int8", ssim=0.5, psnr_db=20.0, baseline_ssim=0.1, samples=9, fit_samples=9, steps=9
    )

    def leak(work: Work, step: Any, context: Context) -> Work:
        (context.folder / "cut_0.png").write_bytes(b"\x89PNG")
        return Work(work.manifest.model_copy(update={"leakage": (entry,)}), work.artifacts)

    monkeypatch.setattr(steps, "leakage", leak, raising=False)
    write_version(tmp_path / "version", whole_work())
    plan = recipe(*THREE, "leakage")
    samples = pack_calibration(small_pictures(SAMPLES))
    result = run_in(tmp_path / "run", tmp_path / "version", samples, plan.model_dump_json(), "m", progress=no_progress)
    assert set(result.files) == {WHOLE, HEAD, TAIL, MANIFEST, REPORT}
    assert all(path.is_file() for path in result.files.values())
    assert Report.from_json(result.files[REPORT].read_bytes()) == result.report
    assert result.report.leakage == (entry,)
    assert [path.read_bytes() for path in result.pictures.values()] == [b"\x89PNG"]
    assert list(result.pictures) == [f"{CUT} (int8)"]
    assert not (tmp_path / "run" / child.PICTURES).is_relative_to(tmp_path / "run" / "result")
    assert not (tmp_path / "run" / "spool").exists()
    assert result.error() is None


SLOW = """
import sys, time
from pathlib import Path
from splitmesh.compress import engine
from tests.unit import test_engine as t
from splitmesh.compress.child import run_in

steps = t.Steps(t.pytest.MonkeyPatch())
def hang(work, step, context):
    print("hanging", flush=True)
    time.sleep(600)
steps.int8_cut = hang
run_in(sys.argv[1], sys.argv[2], sys.argv[3], t.recipe(*t.THREE).model_dump_json(), "m", progress=t.no_progress)
"""


def test_a_power_cut_between_steps_costs_only_the_step_under_way(tmp_path: Path, steps: Steps) -> None:
    write_version(tmp_path / "version", whole_work())
    samples = tmp_path / "calibration.safetensors"
    samples.write_bytes(pack_calibration(small_pictures(SAMPLES)))
    folder, version = str(tmp_path / "run"), str(tmp_path / "version")
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, folder, version, str(samples)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hanging\n"
        process.send_signal(signal.SIGKILL)
    assert steps_done(tmp_path / "run") == 2
    plan = recipe(*THREE).model_dump_json()
    result = run_in(folder, version, str(samples), plan, "m", progress=no_progress)
    assert steps.calls == ["int8-cut"]
    assert json.loads(result.files[REPORT].read_bytes())["steps"][1]["step"] == f"split:at={CUT}"


def orphan(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    signal.pause()


PARENT = """
import asyncio, sys
from splitmesh.kernel.jobs import run_job
from tests.unit.test_engine import orphan
asyncio.run(run_job(orphan, sys.argv[1], deadline_s=600, max_memory_bytes=8 << 30))
"""


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with subprocess.Popen([sys.executable, "-c", PARENT, str(pid_file)], cwd=ROOT) as process:
        until(lambda: pid_file.is_file() and pid_file.read_text() != "")
        process.kill()
    pid = int(pid_file.read_text())
    until(lambda: not running(pid))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def until(true: Callable[[], bool]) -> None:
    for _ in range(600):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("did not become true within 30 s")


def test_a_refusal_comes_out_of_a_child_process_with_its_reason(tmp_path: Path) -> None:
    write_version(tmp_path / "version", whole_work())
    samples = pack_calibration(small_pictures(SAMPLES))
    job = run_job(
        run_in,
        str(tmp_path / "run"),
        str(tmp_path / "version"),
        samples,
        recipe("int8-cut").model_dump_json(),
        "m",
        deadline_s=60,
        max_memory_bytes=8 << 30,
        on_progress=no_progress,
    )
    with pytest.raises(MeshError, match="not split") as caught:
        asyncio.run(job)
    assert caught.value.reason is Reason.MODEL_INCOMPLETE
