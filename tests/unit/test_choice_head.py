"""What computes a head: measured in a child, remembered, made again when something changed, and what happens where that fails."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from edge.head import chosen, load
from edge.head.chosen import backend_message, choose_backend, needed_bytes
from edge.head.config import HeadSettings
from edge.head.load import OpenedHead, open_head
from edge.head.staged import StagedHead
from splitmesh.client.registry import VersionInfo
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import Manifest
from splitmesh.runtime.candidates import Candidate, Measured
from splitmesh.runtime.choices import Choice
from splitmesh.runtime.host import HostFacts
from splitmesh.runtime.host_backends import BackendFacts
from tests.integration.small_model import small_manifest
from tests.unit.onnx_nets import data, model, node, residual, value, weight

HOST = HostFacts(
    cpu_model="a processor",
    cpu_flags=(),
    cpus=2.0,
    memory_bytes=1 << 34,
    architecture="x86_64",
    os="Linux",
    backends=(BackendFacts("onnxruntime-cpu", "1", ("fp32",)), BackendFacts("openvino-cpu", "1", ("fp32",))),
)
OPENVINO = Choice(Measured(Candidate("openvino-cpu", "fp32", 1)))
OF_ONNXRUNTIME = data(
    model(
        [node("CDist", "x w", "y", domain="com.microsoft", metric="euclidean")],
        [value("x", ["N", 4])],
        [value("y", ["N", 4])],
        [weight("w", 4, 4)],
        domains=["com.microsoft"],
    )
)
"""One operator that OpenVINO does not know."""


@pytest.fixture(autouse=True)
def this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts of a host as if a child had looked; what computes is really here."""
    monkeypatch.setattr(chosen, "_HOST", [HOST])


class _Cache:
    """Every part is the same model, or the next of several."""

    def __init__(self, *contents: bytes) -> None:
        self._contents = list(contents)
        self._next = 0

    async def part(self, version: VersionInfo, name: str) -> bytes:
        self._next += 1
        return self._contents[(self._next - 1) % len(self._contents)]


def settings(folder: Path, **changes: Any) -> HeadSettings:
    made = {
        "data_dir": folder,
        "backends": "auto",
        "choice_budget_s": 1.0,
        "cores": 1,
        "workers": 1,
        "providers": "cpu",
    }
    return HeadSettings(**{**made, **changes})


def whole() -> Manifest:
    return small_manifest().model_copy(update={"split": None, "exit": None})


VERSION = VersionInfo("joints", 1, None, {}, "test", "", (), datetime(2025, 1, 1, tzinfo=UTC))


async def opened(
    folder: Path, *contents: bytes, threads: int = 0, like: Choice | None = None, **changes: Any
) -> OpenedHead:
    cache = cast(Any, _Cache(*(contents or (data(residual()),))))
    return await open_head(cache, VERSION, whole(), settings(folder, **changes), threads=threads, like=like)


def ways(choice: Choice) -> set[str]:
    return {one.candidate.backend for one in choice.candidates}


async def test_a_head_is_opened_with_what_was_measured_best_and_the_next_start_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await opened(tmp_path)
    assert ways(first.choice) == {"onnxruntime-cpu", "openvino-cpu"}
    assert first.choice.chosen in first.choice.candidates
    assert not first.choice.remembered
    assert first.threads == first.choice.chosen.candidate.threads
    monkeypatch.setattr(chosen, "run_job", None)  # nothing is measured
    again = await opened(tmp_path)
    assert again.choice == first.choice
    assert again.choice.remembered
    assert again.session.providers == first.session.providers


async def test_a_changed_host_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await opened(tmp_path)
    monkeypatch.setattr(chosen, "_HOST", [replace(HOST, cpu_model="another processor")])
    assert not (await opened(tmp_path)).choice.remembered
    assert (await opened(tmp_path)).choice.remembered


async def test_the_chosen_back_end_computes_the_frames(tmp_path: Path) -> None:
    feeds = {"x": np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)}
    answers = {}
    for name in ("onnxruntime", "openvino"):
        head = await opened(tmp_path / name, backends=name)
        assert head.choice.chosen.candidate.backend == f"{name}-cpu"
        answers[name] = head.session.run(feeds)["logits"]
        head.session.close()
    np.testing.assert_allclose(answers["onnxruntime"], answers["openvino"], rtol=1e-4, atol=1e-5)


async def test_a_head_that_openvino_does_not_know_is_computed_by_onnxruntime(tmp_path: Path) -> None:
    head = await opened(tmp_path, OF_ONNXRUNTIME)
    assert head.choice.chosen.candidate.backend == "onnxruntime-cpu"
    assert "CDist" in next(one.refused for one in head.choice.candidates if one.candidate.backend == "openvino-cpu")


async def test_who_allows_openvino_alone_is_told_that_it_cannot(tmp_path: Path) -> None:
    with pytest.raises(MeshError) as caught:
        await opened(tmp_path, OF_ONNXRUNTIME, backends="openvino")
    assert caught.value.reason is Reason.MODEL_OPERATOR_UNSUPPORTED
    assert "CDist" in caught.value.message


async def test_who_asks_for_a_back_end_that_is_not_here_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chosen, "_HOST", [replace(HOST, backends=HOST.backends[:1])])
    with pytest.raises(MeshError) as caught:
        await opened(tmp_path, backends="onnxruntime,openvino")
    assert caught.value.reason is Reason.EXTRA_MISSING


async def test_where_one_back_end_is_all_there_is_nobody_looks_at_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chosen, "this_host", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    head = await opened(tmp_path)
    assert head.choice.chosen.candidate.backend == "onnxruntime-cpu"
    assert 0 < head.choice.chosen.p50_ms <= head.choice.chosen.p99_ms
    assert head.choice.chosen.frames_per_s > 0


async def test_beside_a_version_that_answers_its_way_is_used_where_the_answers_hold(tmp_path: Path) -> None:
    like = Choice(Measured(Candidate("openvino-cpu", "fp32", 1)))
    head = await opened(tmp_path, threads=1, like=like)
    assert head.choice.chosen.candidate == like.chosen.candidate
    assert not (tmp_path / "choices").exists()  # not the best of all, as far as is known
    other = await opened(tmp_path, OF_ONNXRUNTIME, threads=1, like=like)
    assert other.choice.chosen.candidate.backend == "onnxruntime-cpu"


async def test_beside_a_version_whose_way_is_not_known_onnxruntime_computes_with_its_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chosen, "run_job", None)
    head = await opened(tmp_path, threads=1)
    assert head.choice.chosen.candidate == Candidate("onnxruntime-cpu", "fp32", 1)


async def test_beside_a_version_that_answers_a_remembered_choice_is_used(tmp_path: Path) -> None:
    first = await opened(tmp_path)
    again = await opened(tmp_path, threads=1)
    assert again.choice.remembered
    assert again.choice == first.choice


def crash(*arguments: object) -> list[Measured]:
    os._exit(3)


async def test_a_back_end_that_crashes_while_it_is_measured_takes_nothing_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(chosen, "measure_pieces", crash)
    head = await opened(tmp_path)
    assert head.choice.chosen.candidate.backend == "onnxruntime-cpu"
    assert "crashed" in caplog.text
    assert not (tmp_path / "choices").exists()


async def test_what_was_chosen_and_cannot_be_opened_any_more_makes_way_for_onnxruntime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise MeshError(Reason.EXTRA_MISSING, "a library is gone")

    async def chose(*arguments: Any, **options: Any) -> Choice:
        return OPENVINO

    monkeypatch.setattr(load, "choose_backend", chose)
    monkeypatch.setattr(load, "open_pieces", broken)
    assert (await opened(tmp_path)).choice.chosen.candidate.backend == "onnxruntime-cpu"
    with pytest.raises(MeshError) as caught:
        await opened(tmp_path, backends="openvino")
    assert caught.value.reason is Reason.EXTRA_MISSING


async def test_a_head_for_which_the_host_has_no_memory_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    with pytest.raises(MeshError) as caught:
        await opened(tmp_path, memory_reserve_bytes=1 << 59)
    assert caught.value.reason is Reason.HOST_TOO_SMALL
    assert "MiB free" in caught.value.message


async def test_the_memory_that_an_open_head_takes_is_told(tmp_path: Path) -> None:
    content = data(residual())
    assert (await opened(tmp_path, content)).memory_bytes >= len(content)
    assert needed_bytes([content], None) == chosen.COPIES * len(content)
    assert needed_bytes([content], Choice(replace(OPENVINO.chosen, memory_bytes=77))) == 77


async def test_a_head_in_pieces_runs_on_the_chosen_back_end_piece_by_piece(tmp_path: Path) -> None:
    first = data(
        model([node("MatMul", "x w", "h")], [value("x", ["N", 4])], [value("h", ["N", 4])], [weight("w", 4, 4)])
    )
    second = data(
        model([node("MatMul", "h v", "y")], [value("h", ["N", 4])], [value("y", ["N", 3])], [weight("v", 4, 3)])
    )
    asked = settings(tmp_path, backends="openvino")
    choice = await choose_backend([first, second], asked, threads=0, like=None)
    head = load._open([first, second], VERSION, asked, 0, choice, staged=True)
    assert isinstance(head.session, StagedHead)
    assert [stage.providers for stage in head.session.stages] == [("openvino-cpu",)] * 2
    assert head.session.run({"x": np.ones((1, 4), np.float32)})["y"].shape == (1, 3)
    assert head.company == 1


def test_others_are_told_of_the_choice_and_of_what_was_refused() -> None:
    refused = Measured(Candidate("openvino-cpu", "fp16", 1), refused="not here")
    best = Measured(Candidate("openvino-cpu", "bf16", 2), 3.0, 4.0, 600.0, 0.01)
    told = backend_message(Choice(best, (best, refused), remembered=True))
    assert (told.chosen.backend, told.chosen.precision, told.chosen.threads) == ("openvino-cpu", "bf16", 2)
    assert (told.chosen.p50_ms, told.chosen.p99_ms, told.chosen.frames_per_s) == (3.0, 4.0, 600.0)
    assert [one.refused for one in told.candidates] == ["", "not here"]
    assert told.remembered


@pytest.mark.parametrize(
    "wrong",
    [{"backends": ""}, {"backends": "auto,openvino"}, {"precisions": "int4"}, {"choice_budget_s": 0}],
)
def test_settings_that_mean_nothing_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        settings(tmp_path, **wrong)
