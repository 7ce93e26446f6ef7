"""Commands against a mesh of real processes, in the order of an operator's day: import, split, compress, promote, look."""

import asyncio
import hashlib
import json
import shutil
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from splitmesh.export.record import RECORD
from splitmesh.model.alternatives import ALTERNATIVES
from splitmesh.model.manifest import CALIBRATION, HEAD, MANIFEST, OUTCOMES, REPORT, TAIL, WHOLE
from splitmesh.model.profile_data import Profile
from splitmesh.testing.mesh import WITHOUT_FLEET, LocalMesh, ProcessLauncher
from tests.integration.command_line import Ended, model_files, pictures, refused, splitmesh
from tests.integration.small_model import CUT, LABELS, SIDE, small_model, small_pictures
from tests.support.worlds import ROOT, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "stripes"
CALIBRATED_ON = 150
FRAMES = 12
REPORTED_WITHIN_S = 60.0
TIMINGS = {"queue_ms", "decode_ms", "head_ms", "encode_ms", "link_ms", "tail_queue_ms", "tail_ms", "total_ms"}


@dataclass(frozen=True)
class Mesh:
    """A running mesh and files to give it."""

    settings: Mapping[str, str]
    head: str
    folder: Path

    async def run(self, *arguments: object) -> Ended:
        """A command whose environment names this mesh."""
        settings = {name.upper(): value for name, value in self.settings.items()}
        return await splitmesh(*arguments, **settings, HEAD=self.head)


@dataclass(frozen=True)
class Deployed:
    """A mesh on which every step went through, and what each step printed."""

    mesh: Mesh
    empty: Ended
    """The services before there was a model."""
    imported: Ended
    split: Ended
    compressed: Ended
    goals: Ended
    promoted: Ended


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    folder = tmp_path_factory.mktemp("mesh")
    model_files(folder)
    pictures(folder / "calibration", CALIBRATED_ON)
    pictures(folder / "frames", FRAMES, seed=5)
    launcher = ProcessLauncher(ROOT, folder / "run")
    settings = {"head": {"models": MODEL, "report_interval_s": "0.2"}, "registry": {"min_free_bytes": "0"}}
    async with LocalMesh(launcher, folder, settings=settings) as running:
        yield Mesh(running.environment(), running.address("head"), folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployed(mesh: Mesh) -> Deployed:
    files = mesh.folder
    empty = await mesh.run("services", "--json")
    imported = await mesh.run(
        *("models", "import", files / "small.onnx", "--name", MODEL, "--labels", files / "labels.json"),
        *("--preprocess", files / "preprocess.json", "--calibration", files / "calibration"),
        *("--description", "stripes, first try", "--json"),
    )
    split = await mesh.run("split", f"{MODEL}:1", "--at", CUT, "--json")
    compressed = await mesh.run("compress", f"{MODEL}:2", "--json")
    goals = await mesh.run("route", "goals", MODEL, "--max-disagreement", 0.2, "--delta", 0.1, "--json")
    promoted = await mesh.run("models", "promote", f"{MODEL}:3", "--json")
    assert promoted.code == 0, (imported, split, compressed, goals, promoted)
    await serving(mesh.head)
    return Deployed(mesh, empty, imported, split, compressed, goals, promoted)


async def test_import_registers_a_version_with_all_its_files(deployed: Deployed) -> None:
    assert deployed.imported.out.startswith("{")
    version = deployed.imported.json
    assert (version["model"], version["version"], version["parent"]) == (MODEL, 1, 0)
    assert version["created_by"].startswith("import by ")
    assert version["description"] == "stripes, first try"
    assert version["artifacts"].keys() == {WHOLE, MANIFEST, CALIBRATION}
    whole = version["artifacts"][WHOLE]
    assert whole["sha256"] == hashlib.sha256(small_model()).hexdigest()
    assert whole["size_bytes"] == len(small_model())
    assert version["artifacts"][CALIBRATION]["size_bytes"] > CALIBRATED_ON * SIDE * SIDE


async def test_a_split_of_a_version_is_a_version_that_equals_it(deployed: Deployed) -> None:
    assert deployed.split.json["version"] == 2
    assert deployed.split.json["max_abs_error"] < 1e-6


async def test_compress_says_what_it_saved_and_what_it_cost(deployed: Deployed) -> None:
    shown = deployed.compressed.json
    assert (shown["version"], shown["within_budget"]) == (3, True)
    report = shown["report"]
    assert [step["step"] for step in report["steps"]] == ["int8-cut", "exits"]
    wire_bytes = {point["name"]: point["wire_bytes"] for point in report["points"]}
    assert 0 < wire_bytes["int8 cut, rate 0"] < wire_bytes["float32 cut, zstd"]
    assert report["fit_samples"] + report["validation_samples"] + report["holdout_samples"] == CALIBRATED_ON
    assert 0.5 < report["exits"][-1]["agreement"]["share"] <= 1
    assert 0.8 < report["agreement"]["share"] <= 1


async def test_compressions_are_listed_and_give_their_report_as_a_page(deployed: Deployed, tmp_path: Path) -> None:
    (known,) = (await deployed.mesh.run("compressions", "list", MODEL, "--json")).json
    assert (known["state"], known["model"], known["version"], known["result_version"]) == ("SUCCEEDED", MODEL, 2, 3)
    number = known["compression_id"]
    table = await deployed.mesh.run("compressions", "list")
    assert number in table.out
    report = await deployed.mesh.run("compressions", "report", number, "--report", tmp_path / "page.html", "--json")
    assert report.json["report"] == deployed.compressed.json["report"]
    assert "int8 cut, rate 0" in (tmp_path / "page.html").read_text()
    watched = await deployed.mesh.run("compressions", "watch", number)
    assert f"{number} of {MODEL}:2 is SUCCEEDED, 2 steps done, version 3" in watched.out
    again = await deployed.mesh.run("compressions", "cancel", number, "--json")
    assert again.json["state"] == "SUCCEEDED"
    refused(await deployed.mesh.run("compressions", "watch", "compression-of-nobody"), "COMPRESSION_NOT_FOUND")


async def test_a_recipe_over_its_budget_is_refused_and_leaves_its_report(deployed: Deployed, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    steps = ("--recipe", "bottleneck:channels=1,rates=1", "--max-disagreement", 0.0)
    ended = await deployed.mesh.run("compress", f"{MODEL}:2", *steps, "--report", page)
    assert "max_disagreement" in refused(ended, "BUDGET_EXCEEDED")
    assert "Over the budget" in page.read_text()
    versions = (await deployed.mesh.run("models", "list", MODEL, "--json")).json
    assert max(version["version"] for version in versions) == 3


async def test_goals_are_repeated_as_they_are_in_force(deployed: Deployed) -> None:
    assert deployed.goals.json["stated"]
    assert deployed.goals.json["goals"]["max_disagreement"] == 0.2
    assert deployed.goals.json["goals"]["delta"] == pytest.approx(0.1)


async def test_promote_says_where_the_alias_was_and_is(deployed: Deployed) -> None:
    assert deployed.promoted.json == {"model": MODEL, "alias": "production", "previous_version": 0, "version": 3}


async def test_list_names_models_and_then_versions(deployed: Deployed) -> None:
    (model,) = (await deployed.mesh.run("models", "list", "--json")).json
    assert (model["name"], model["latest_version"], model["aliases"]) == (MODEL, 3, {"production": 3})
    versions = (await deployed.mesh.run("models", "list", MODEL, "--json")).json
    assert [(each["version"], each["parent"]) for each in versions] == [(3, 2), (2, 1), (1, 0)]
    assert [each["aliases"] for each in versions] == [["production"], [], []]
    table = await deployed.mesh.run("models", "list")
    assert (table.code, "production=3" in table.out) == (0, True)
    table = await deployed.mesh.run("models", "list", MODEL)
    assert "stripes, first try" in table.out


@pytest.mark.parametrize("reference", [f"{MODEL}:3", f"{MODEL}@production"])
async def test_show_finds_a_version_by_number_and_by_alias(deployed: Deployed, reference: str) -> None:
    shown = (await deployed.mesh.run("models", "show", reference, "--json")).json
    assert shown["version"]["version"] == 3
    assert shown["version"]["artifacts"].keys() >= {WHOLE, HEAD, TAIL, MANIFEST, CALIBRATION, OUTCOMES, REPORT}
    assert shown["manifest"]["labels"] == list(LABELS)
    assert [tensor["name"] for tensor in shown["manifest"]["split"]["cut"]] == [CUT]
    assert shown["manifest"]["split"]["wire"][0]["dtype"] == "uint8"
    assert shown["manifest"]["exit"]["output"] == "exit_probabilities"


async def test_show_for_people_says_what_crosses_and_what_the_exit_knows(deployed: Deployed) -> None:
    shown = await deployed.mesh.run("models", "show", MODEL)
    assert f"{MODEL} version 3 (production), from version 2, made: compressor" in shown.out
    assert f"classes: {', '.join(LABELS)}" in shown.out
    assert f"cut at {CUT}; crosses: {CUT}.q8 uint8" in shown.out
    assert "held-out samples" in shown.out


async def test_pull_brings_every_file_as_it_was_imported(deployed: Deployed, tmp_path: Path) -> None:
    version = (await deployed.mesh.run("models", "pull", MODEL, "-o", tmp_path / "out", "--json")).json
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name != RECORD}
    assert found.keys() == version["artifacts"].keys()
    for name, content in found.items():
        assert hashlib.sha256(content).hexdigest() == version["artifacts"][name]["sha256"]
    assert found[WHOLE] == small_model()
    again = await deployed.mesh.run("models", "pull", f"{MODEL}:1", "-o", tmp_path / "out")
    assert f"{MODEL} version 1, made: import by " in again.out


async def test_a_plan_of_a_version_is_the_services_own(deployed: Deployed) -> None:
    link = ("--uplink-mbps", 5, "--rtt-ms", 30, "--budget-s", 1)
    plan = (await deployed.mesh.run("plan", f"{MODEL}:1", *link, "--json")).json
    assert {"EDGE_ONLY", "SPLIT"} <= {option["kind"] for option in plan["options"]}
    assert plan["why"]


async def test_a_split_by_a_plan_keeps_it_through_compression_and_show_tells_it(
    deployed: Deployed, tmp_path: Path
) -> None:
    run, plan = deployed.mesh.run, tmp_path / "plan.json"
    await run(
        *("models", "import", deployed.mesh.folder / "small.onnx", "--name", "planned"),
        *("--labels", deployed.mesh.folder / "labels.json", "--preprocess", deployed.mesh.folder / "preprocess.json"),
        *("--calibration", deployed.mesh.folder / "calibration"),
    )
    asked = ("--uplink-mbps", 5, "--rtt-ms", 30, "--budget-s", 1, "--edge-slowdown", 500)
    planned = await run("plan", "planned:1", *asked, "--out", plan)
    assert f"written to {plan}" in planned.out, planned
    split = await run("split", "planned:1", "--plan", plan, "--at", CUT)
    assert split.out.endswith(f"cut as planned at {CUT}\n"), split
    compressed = (await run("compress", "planned:2", "--recipe", "int8-cut", "--json")).json["version"]
    for version in (2, compressed):
        shown = (await run("models", "show", f"planned:{version}", "--json")).json["plan"]
        assert shown["plan"]["options"][shown["chosen"]]["cut"] == [CUT]
        assert shown["plan"]["links"][0]["uplink_mbps"] == 5
    text = (await run("models", "show", f"planned:{compressed}")).out
    assert "plan of planned:1 for latency" in text
    assert "5 Mbit/s, 30 ms" in text


async def test_a_version_is_profiled_on_a_node_of_the_mesh_and_the_next_call_goes_on(
    deployed: Deployed, tmp_path: Path
) -> None:
    mesh = deployed.mesh
    missing = refused(await mesh.run("profile", f"{MODEL}:1", "--node", "nobody"), "NODE_NOT_FOUND")
    node = missing.rpartition("known: ")[2].split(", ")[0]
    started = await mesh.run("profile", f"{MODEL}:1", "--node", node, "--budget-s", 0.1, "--json")
    assert started.code == 0, started
    first = Profile.from_json(started.out)
    figure = tmp_path / "profile.png"
    again = await mesh.run("profile", f"{MODEL}:3", "--node", node, "--budget-s", 30, "--plot", figure)
    assert again.code == 0, again
    assert node in again.out
    assert figure.stat().st_size > 10_000
    second = Profile.from_json((await mesh.run("profile", f"{MODEL}:1", "--node", node, "--json")).out)
    assert first.key == second.key
    assert sum(cut.measured for cut in first.cuts) < sum(cut.measured for cut in second.cuts)
    assert first.calibration == "real"


async def test_adapt_makes_a_version_that_heads_run_in_several_ways(deployed: Deployed) -> None:
    run, files = deployed.mesh.run, deployed.mesh.folder
    await run("models", "import", files / "small.onnx", "--name", "adaptive")
    await run("split", "adaptive", "--at", CUT)
    made = await run("adapt", "adaptive", 2, 1, "--uplink-mbps", 5, "--rtt-ms", 30)
    assert made.out == "adaptive version 3 adapts among versions 2, 1\n", made
    again = await run("adapt", "adaptive", 2, 1, "--uplink-mbps", 5, "--rtt-ms", 30, "--json")
    assert again.json == {"model": "adaptive", "version": 3}
    assert ALTERNATIVES in (await run("models", "show", "adaptive:3", "--json")).json["version"]["artifacts"]
    refused(await run("adapt", "adaptive", 2), "FIELD_INVALID")
    refused(await run("adapt", "adaptive", 2, 1, "--uplink-mbps", 0), "FIELD_INVALID")


async def test_infer_answers_a_picture(deployed: Deployed) -> None:
    for number, label in enumerate(LABELS):
        strong = deployed.mesh.folder / f"strong-{label}.png"
        wave = 60 * np.sin(np.arange(SIDE) * np.pi / 2)
        plane = {0: wave[:, None], 1: wave[None, :], 2: 0}[number] + np.full((SIDE, SIDE), 128)
        Image.fromarray(plane.astype(np.uint8)).save(strong)
        answer = (await deployed.mesh.run("infer", strong, "--camera", "line-1", "--json")).json
        assert answer["labels"][0]["name"] == label
        assert answer["labels"][0]["index"] == number
        assert sum(each["score"] for each in answer["labels"]) == pytest.approx(1, abs=1e-3)
        assert (answer["model"], answer["version"], answer["cut"]) == (MODEL, 3, [CUT])
        assert answer["answered_by"] in ("EDGE_EXIT", "CLOUD_TAIL")
        assert (answer["uplink_bytes"] > 0) == (answer["answered_by"] == "CLOUD_TAIL")
        assert answer["timings"].keys() == TIMINGS
        assert len(answer["trace_id"]) == 32
    shown = await deployed.mesh.run("infer", strong)
    assert LABELS[2] in shown.out
    assert f"{MODEL} version 3, trace " in shown.out


async def test_stream_answers_a_folder_line_by_line_and_names_what_it_refuses(
    deployed: Deployed, tmp_path: Path
) -> None:
    shutil.copytree(deployed.mesh.folder / "frames", tmp_path / "frames")
    (tmp_path / "frames" / "zz-broken.jpg").write_bytes(b"no picture")
    ended = await deployed.mesh.run("stream", tmp_path / "frames", "--json", "--deadline-ms", 5000)
    assert ended.code == 1
    lines = [json.loads(line) for line in ended.out.splitlines()]
    assert sorted(line["frame_id"] for line in lines) == list(range(FRAMES + 1))
    (failure,) = (line for line in lines if "error" in line)
    assert (failure["frame_id"], failure["error"]["reason"]) == (FRAMES, "IMAGE_UNDECODABLE")
    top = {line["frame_id"]: line["labels"][0]["index"] for line in lines if "labels" in line}
    right = sum(top[number] == number % 3 for number in range(FRAMES))
    assert right >= FRAMES - 2  # stripes may be too faint to see


async def test_stream_for_people_sums_up(deployed: Deployed) -> None:
    summary = await deployed.mesh.run("stream", deployed.mesh.folder / "frames", "--limit", 5, "--window", 2)
    assert summary.code == 0
    assert "5 frames" in summary.out
    assert "EDGE_EXIT" in summary.out or "CLOUD_TAIL" in summary.out
    assert "bytes of features on the uplink" in summary.out


async def test_stream_plays_a_video(deployed: Deployed, tmp_path: Path) -> None:
    if find_spec("av") is None:
        pytest.skip("PyAV is not installed: pip install 'splitmesh[video]'")
    import av

    with av.open(str(tmp_path / "clip.mp4"), "w") as clip:
        stream = clip.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for picture in small_pictures(7):
            still = np.kron(picture[..., 0], np.ones((4, 4), dtype=np.uint8))
            clip.mux(stream.encode(av.VideoFrame.from_ndarray(np.repeat(still[..., None], 3, 2), format="rgb24")))
        clip.mux(stream.encode(None))
    lines = (await deployed.mesh.run("stream", tmp_path / "clip.mp4", "--json", "--deadline-ms", 5000)).lines
    assert sorted(line["frame_id"] for line in lines) == list(range(7))
    assert all(line["version"] == 3 for line in lines)


async def test_services_says_who_is_well_and_what_a_tail_has_loaded(deployed: Deployed) -> None:
    services = {one["service"]: one for one in (await deployed.mesh.run("services", "--json")).json}
    assert services.keys() == set(WITHOUT_FLEET)
    assert {one["health"] for one in services.values()} == {"SERVING"}
    assert f"{MODEL}:3 on CPUExecutionProvider" in services["tail"]["detail"]
    assert services["head"]["address"] == deployed.mesh.head
    (uplink,) = services["head"]["uplinks"]
    assert (uplink["node"], uplink["model"], uplink["state"]) == ("tail-1", f"{MODEL}:3", "open")
    assert not services["tail"]["uplinks"]
    table = await deployed.mesh.run("services")
    assert table.out.count("SERVING") == len(WITHOUT_FLEET)
    assert "uplinks of" in table.out
    assert "backlog ms" in table.out


async def test_services_says_that_a_head_has_no_model_yet(deployed: Deployed) -> None:
    (head,) = (one for one in deployed.empty.json if one["service"] == "head")
    assert (head["health"], head["detail"]) == ("NOT_SERVING", "no model yet")


async def test_outcomes_counts_what_each_node_answered_and_refused(deployed: Deployed) -> None:
    run, files = deployed.mesh.run, deployed.mesh.folder
    assert "no reports yet" in (await run("outcomes", "nothing")).out
    assert (await run("infer", files / "frames" / "0000.png")).code == 0
    refused(await run("infer", files / "labels.json"), "IMAGE_UNDECODABLE")
    async with asyncio.timeout(REPORTED_WITHIN_S):
        while not _reported(found := (await run("outcomes", MODEL, "--json")).json):
            pass  # the command itself takes its time
    (entry,) = found
    assert (entry["version"], entry["outcomes"]["edge_whole"]) == (3, 0)
    table = await run("outcomes", MODEL)
    assert all(column in table.out for column in ("edge fallback", "edge whole", "tail disagreed", "tail backlog"))
    assert entry["load"]["tails"] == 1
    assert entry["node"] in table.out
    assert "(IMAGE_UNDECODABLE" in table.out


def _reported(entries: list[Any]) -> bool:
    """Whether both an answer and a refusal have reached the router."""
    counts = [entry["outcomes"] for entry in entries]
    return any(each["edge_exit"] + each["cloud_tail"] and each["refused"] for each in counts)


async def test_refusals_of_services_reach_the_user_with_their_reason(deployed: Deployed) -> None:
    questions = {
        "MODEL_NOT_FOUND": ("models", "show", "nothing"),
        "ALIAS_NOT_FOUND": ("models", "promote", f"{MODEL}@staging"),
        "CUT_INVALID": ("split", f"{MODEL}:1", "--at", "edgs"),
        "MODEL_INCOMPLETE": ("compress", f"{MODEL}:1"),
        "FIELD_INVALID": ("route", "goals", MODEL, "--max-disagreement", 1.5),
        "IMAGE_UNDECODABLE": ("infer", deployed.mesh.folder / "labels.json"),
    }
    answers = await asyncio.gather(*(deployed.mesh.run(*question) for question in questions.values()))
    for reason, answer in zip(questions, answers, strict=True):
        refused(answer, reason)


async def test_steps_for_people_are_one_sentence_or_a_table(deployed: Deployed) -> None:
    run, files = deployed.mesh.run, deployed.mesh.folder
    imported = await run("models", "import", files / "small.onnx", "--name", "second")
    assert imported.out.splitlines()[-1].startswith("second version 1, made: import by ")
    split = await run("split", "second", "--at", CUT)
    assert split.out.startswith("version 2: head + tail differ from the whole by at most")
    assert "second@tested: nowhere -> 2" in (await run("models", "promote", "second:2", "--alias", "tested")).out
    goals = await run("route", "goals", MODEL, "--max-disagreement", 0.2)
    assert "at most 20.00% of samples exit and disagree" in goals.out
    compressed = await run("compress", f"{MODEL}:2", "--recipe", "int8-cut")
    assert compressed.code == 0
    assert "int8 cut, rate 0" in compressed.out
    assert "registered as version" in compressed.out
