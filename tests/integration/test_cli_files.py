"""The command line on files alone, with no service running: plan, split, and what is refused how."""

import sys
import sysconfig
import wave
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from splitmesh.cli import app as cli_app
from splitmesh.model.manifest import HEAD, TAIL, WHOLE, Manifest
from tests.integration.command_line import model_files, pictures, refused, splitmesh, splitmesh_here
from tests.integration.small_model import CUT, LABELS, small_manifest, small_model, small_pictures

CUTS = {"c1", "edges", "pooled", "c2", "mixed", "mean", "flat"}
LINK = ("--uplink-mbps", 10, "--rtt-ms", 20, "--budget-s", 0.5)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    model_files(folder)
    pictures(folder / "pictures", 24)
    return folder


def _answers(folder: Path, samples: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of head + tail and of the whole."""
    preprocess = small_manifest().preprocess
    assert preprocess is not None
    feed = preprocess.normalise(samples)
    head, tail, whole = (ort.InferenceSession(folder / name) for name in (HEAD, TAIL, WHOLE))
    crossing = head.run(None, {"x": feed})
    names = [tensor.name for tensor in head.get_outputs()]
    (both,) = tail.run(None, dict(zip(names, crossing, strict=True)))
    (alone,) = whole.run(None, {"x": feed})
    return both, alone


async def test_a_plan_of_a_file_ranks_every_option(files: Path) -> None:
    ended = await splitmesh("plan", files / "small.onnx", *LINK, "--picture-bytes", 2000, "--escalation", 0.2, "--json")
    plan = ended.json
    assert {option["kind"] for option in plan["options"]} == {"EDGE_ONLY", "CLOUD_ONLY", "SPLIT", "CASCADE"}
    assert {cut for option in plan["options"] for cut in option["cut"]} == CUTS
    latencies = [option["latency_ms"] for option in plan["options"]]
    assert latencies == sorted(latencies)
    cloud = next(option for option in plan["options"] if option["kind"] == "CLOUD_ONLY")
    assert cloud["uplink_bytes"] == 2000
    assert cloud["latency_ms"] == pytest.approx(sum(cloud["stages"].values()))
    assert cloud["stages"]["rtt_ms"] == 20
    assert plan["why"].startswith("edge only takes")
    assert "random input" in plan["why"]
    assert 0 < plan["certificate"]["lower_bound_ms"] <= latencies[0]
    told = {option["kind"]: option["agreement"] for option in plan["options"] if option["codec"] != "uint8+zstd"}
    assert told == {"EDGE_ONLY": 1.0, "CLOUD_ONLY": 1.0, "SPLIT": 1.0, "CASCADE": None}


def test_a_plan_over_three_tiers_says_what_runs_where(files: Path) -> None:
    ended = splitmesh_here(
        *("plan", files / "small.onnx", *LINK, "--picture-bytes", 2000, "--json"),
        *("--tier", "MEC:uplink=100,rtt=5,slowdown=0.5,memory=100000000"),
    )
    options = ended.json["options"]
    assert all([share["tier"] for share in option["tiers"]] == ["edge", "MEC", "cloud"] for option in options)
    alone = {option["kind"] for option in options if sum(share["compute_ms"] > 0 for share in option["tiers"]) == 1}
    assert alone == {"EDGE_ONLY", "CLOUD_ONLY"}
    cut = next(option for option in options if option["kind"] == "SPLIT")
    assert cut["latency_ms"] == pytest.approx(
        sum(share["compute_ms"] + share["link_ms"] for share in cut["tiers"]), rel=1e-6
    )
    shown = splitmesh_here("plan", files / "small.onnx", *LINK, "--tier", "MEC:uplink=100,rtt=5").out
    assert "edge > " in shown


@pytest.mark.parametrize("ending", ["png", "svg", "html"])
def test_a_plan_is_drawn(files: Path, tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib")
    drawn = tmp_path / f"plan.{ending}"
    ended = splitmesh_here(
        *("plan", files / "small.onnx", *LINK, "--picture-bytes", 2000, "--escalation", 0.2, "--frames-per-s", 5),
        *("--plot", drawn),
    )
    assert f"drawn to {drawn}" in ended.out
    content = drawn.read_bytes()
    if ending == "png":
        assert content.startswith(b"\x89PNG")
        return
    texts = content.decode()
    for line in ("edge only", "cloud only, as sent", "best split", "best cascade", "asked: 10"):
        assert f"<!-- {line} -->" in texts


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--plot", "plan.jpg"), "plan.jpg does not end with"),
        (("--tier", "MEC"), "has no name, uplink= or rtt="),
        (("--tier", "MEC:uplink=fast,rtt=1"), "'fast' is no number"),
        (("--tier", "MEC:uplink=1,rtt=1,colour=2"), "'colour=2' is not one of slowdown="),
        (("--tier", "MEC:uplink=0,rtt=1"), "uplink_mbps"),
        (("--tier", "cloud:uplink=1,rtt=1"), "same name twice"),
        (("--edge-node", "mec-1"), "push the model first"),
        (("--keep-on-edge", "edgs"), "did you mean 'edges'"),
        (("--uplink-budget", 100), "frames_per_s"),
    ],
)
def test_a_plan_that_cannot_be_made_says_why(files: Path, options: tuple[object, ...], complaint: str) -> None:
    ended = splitmesh_here("plan", files / "small.onnx", *LINK, *options)
    assert complaint in refused(ended, "FIELD_INVALID")


def test_an_edge_that_lacks_an_operator_is_not_planned_for(files: Path) -> None:
    lacking = ("--picture-stays-on-site", "--unsupported-on-edge", "Conv")
    assert "the edge cannot run Conv" in refused(
        splitmesh_here("plan", files / "small.onnx", *LINK, *lacking), "PLAN_INFEASIBLE"
    )


def test_throughput_ranks_by_frames_per_second(files: Path) -> None:
    asked = ("--picture-bytes", 2000, "--objective", "throughput", "--json")
    options = splitmesh_here("plan", files / "small.onnx", *LINK, *asked).json["options"]
    rates = [option["throughput_fps"] for option in options]
    assert rates == sorted(rates, reverse=True)


def test_a_plan_for_people_says_what_is_refused_and_why(files: Path) -> None:
    ended = splitmesh_here(
        *("plan", files / "small.onnx", *LINK, "--picture-bytes", 9, "--picture-stays-on-site", "--all")
    )
    assert ended.code == 0
    assert "cloud only, as sent" in ended.out
    assert "the picture may not leave the site" in ended.out
    assert ended.out.count("cascade") == 0
    assert "edge only takes" in ended.out


async def test_a_file_split_with_then_is_a_chain(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = await splitmesh(
        *("split", files / "small.onnx", "--at", CUT, "--then", "pooled", "--then", "mean", "-o", out, "--json")
    )
    report = ended.json
    names = [HEAD, "segment_1.onnx", "segment_2.onnx", TAIL]
    assert list(report["size_bytes"]) == names
    assert (report["cut"], report["further"]) == ([CUT], [["pooled"], ["mean"]])
    preprocess = small_manifest().preprocess
    assert preprocess is not None
    feed = crossing = {"x": preprocess.normalise(small_pictures(5, seed=3))}
    for name in names:
        session = ort.InferenceSession(out / name)
        outputs = session.run(None, crossing)
        crossing = dict(zip((tensor.name for tensor in session.get_outputs()), outputs, strict=True))
    (whole,) = ort.InferenceSession(out / WHOLE).run(None, feed)
    np.testing.assert_allclose(crossing["logits"], whole, atol=1e-4)
    said = splitmesh_here("split", files / "small.onnx", "--at", CUT, "--then", "mean", "-o", tmp_path / "three")
    assert "the 3 segments differ from the whole by at most" in said.out


async def test_cuts_of_a_chain_in_the_wrong_order_are_refused(files: Path, tmp_path: Path) -> None:
    ended = await splitmesh(
        *("split", files / "small.onnx", "--at", "mean", "--then", CUT, "-o", tmp_path / "out", "--json")
    )
    assert "cut 2, 'edges', does not lie behind cut 1" in refused(ended, "CUT_INVALID")
    assert not (tmp_path / "out").exists()


async def test_a_chain_can_be_quantised_at_every_hop(files: Path, tmp_path: Path) -> None:
    ended = await splitmesh(
        *("split", files / "small.onnx", "--at", CUT, "--then", "pooled", "-o", tmp_path, "--quantise"),
        *("--labels", files / "labels.json", "--preprocess", files / "preprocess.json"),
        *("--calibration", files / "pictures", "--json"),
    )
    assert 0 < ended.json["max_abs_error"] < 0.1
    manifest = Manifest.from_json((tmp_path / "manifest.json").read_bytes())
    assert manifest.split is not None
    assert [[tensor.dtype for tensor in hop.wire] for hop in manifest.split.hops()] == [["uint8"], ["uint8"]]
    middle = ort.InferenceSession(tmp_path / "segment_1.onnx")
    assert (middle.get_inputs()[0].type, middle.get_outputs()[0].type) == ("tensor(uint8)", "tensor(uint8)")


async def test_a_split_file_is_two_halves_that_equal_the_whole(files: Path, tmp_path: Path) -> None:
    report = (await splitmesh("split", files / "small.onnx", "--at", CUT, "-o", tmp_path / "out", "--json")).json
    assert report["cut"] == [CUT]
    assert report["max_abs_error"] == 0.0
    assert report["size_bytes"] == {name: (tmp_path / "out" / name).stat().st_size for name in (HEAD, TAIL)}
    assert (tmp_path / "out" / WHOLE).read_bytes() == small_model()
    both, alone = _answers(tmp_path / "out", small_pictures(60, seed=9))
    np.testing.assert_allclose(both, alone, rtol=1e-6, atol=1e-6)
    manifest = Manifest.from_json((tmp_path / "out" / "manifest.json").read_bytes())
    assert (manifest.task, manifest.labels, manifest.preprocess) == ("raw", (), None)


def test_a_split_at_several_tensors_takes_them_in_either_form(tmp_path: Path) -> None:
    from tests.unit.onnx_nets import data, two_branches

    (tmp_path / "two.onnx").write_bytes(data(two_branches()))
    together = splitmesh_here("split", tmp_path / "two.onnx", "--at", "l2, r2", "-o", tmp_path / "a", "--json")
    apart = splitmesh_here("split", tmp_path / "two.onnx", "--at", "l2", "--at", "r2", "-o", tmp_path / "b", "--json")
    assert together.json["cut"] == apart.json["cut"] == ["l2", "r2"]
    assert (tmp_path / "a" / TAIL).read_bytes() == (tmp_path / "b" / TAIL).read_bytes()


async def test_a_quantised_split_sends_bytes_and_says_how_far_it_is_off(files: Path, tmp_path: Path) -> None:
    ended = await splitmesh(
        *("split", files / "small.onnx", "--at", CUT, "-o", tmp_path, "--labels", files / "labels.json"),
        *("--preprocess", files / "preprocess.json", "--quantise", "--calibration", files / "pictures", "--json"),
    )
    max_error = ended.json["max_abs_error"]
    assert 0 < max_error < 0.02
    manifest = Manifest.from_json((tmp_path / "manifest.json").read_bytes())
    assert (manifest.task, manifest.labels) == ("classification", LABELS)
    assert manifest.split is not None
    assert [tensor.dtype for tensor in manifest.split.wire] == ["uint8"]
    assert ort.InferenceSession(tmp_path / HEAD).get_outputs()[0].type == "tensor(uint8)"
    both, alone = _answers(tmp_path, small_pictures(24))
    assert np.abs(both - alone).max() == pytest.approx(max_error * np.abs(alone).max(), rel=0.1)


def test_a_split_for_people_is_a_table_and_a_sentence(files: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("horizontal\nvertical\n\nplain\n")
    labels = ("--labels", tmp_path / "labels.txt")
    ended = splitmesh_here("split", files / "small.onnx", "--at", CUT, "-o", tmp_path / "out", *labels)
    assert ended.code == 0
    assert "head.onnx" in ended.out
    assert "differ from the whole by at most 0.00e+00" in ended.out
    assert Manifest.from_json((tmp_path / "out" / "manifest.json").read_bytes()).labels == LABELS


async def test_an_unknown_tensor_is_refused_with_its_neighbour(files: Path, tmp_path: Path) -> None:
    ended = await splitmesh("split", files / "small.onnx", "--at", "edgs", "-o", tmp_path / "out", "--json")
    assert "did you mean 'edges'?" in refused(ended, "CUT_INVALID")
    assert ended.out == ""
    assert not (tmp_path / "out").exists()


def _external(folder: Path) -> None:
    model = onnx.load_model_from_string(small_model())
    weight = model.graph.initializer[0]
    weight.data_location = TensorProto.EXTERNAL
    weight.ClearField("raw_data")
    weight.external_data.add(key="location", value="/etc/passwd")
    (folder / "model.onnx").write_bytes(model.SerializeToString())


@pytest.mark.parametrize("command", ["plan", "split"])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [("cut off", "MODEL_CORRUPT"), ("external", "MODEL_EXTERNAL_DATA"), ("missing", "FIELD_INVALID")],
)
def test_a_bad_model_file_is_refused(command: str, kind: str, reason: str, tmp_path: Path) -> None:
    if kind == "cut off":
        (tmp_path / "model.onnx").write_bytes(small_model()[:300])
    elif kind == "external":
        _external(tmp_path)
    options = LINK if command == "plan" else ("--at", CUT, "-o", tmp_path / "out")
    refused(splitmesh_here(command, tmp_path / "model.onnx", *options), reason)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("split", "small.onnx", "--at", CUT), "--out is needed"),
        (("split", "small.onnx", "-o", "out"), "--at is needed"),
        (("split", "joints:1", "--at", CUT, "-o", "out"), "are for ONNX files"),
        (("plan", "small.onnx", "--rtt-ms", 1), "Missing option '--uplink-mbps'"),
        (("models", "import", "small.onnx"), "Missing option '--name'"),
        (("infer", "absent.jpg"), "does not exist"),
        (("plan", "small.onnx", *LINK, "--escalation", 1.5), "'--escalation'"),
    ],
)
def test_wrong_usage_ends_with_code_two(
    files: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...], complaint: str
) -> None:
    monkeypatch.chdir(files)
    ended = splitmesh_here(*options)
    assert ended.code == 2
    assert complaint in " ".join(ended.err.replace("│", " ").split())


def test_files_that_cannot_be_used_are_refused_with_their_name(files: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"gr\xfcn\nblau\n")
    (tmp_path / "half.json").write_text('{"width": 16,')
    (tmp_path / "list.json").write_text('["a", ')
    base = ("split", files / "small.onnx", "--at", CUT, "-o", tmp_path / "out")
    for options in (
        ("--labels", tmp_path / "latin.txt"),
        ("--labels", tmp_path / "list.json"),
        ("--labels", files / "pictures"),
        ("--preprocess", tmp_path / "half.json"),
    ):
        assert str(options[1]) in refused(splitmesh_here(*base, *options), "FIELD_INVALID")
    blocked = splitmesh_here("split", files / "small.onnx", "--at", CUT, "-o", files / "labels.json")
    assert str(files / "labels.json") in refused(blocked, "FIELD_INVALID")


def test_quantising_without_pictures_is_refused(files: Path, tmp_path: Path) -> None:
    base = ("split", files / "small.onnx", "--at", CUT, "-o", tmp_path / "out", "--quantise")
    assert "needs --calibration" in refused(splitmesh_here(*base), "FIELD_INVALID")
    (tmp_path / "empty").mkdir()
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 800, "NONE", ""))
        sound.writeframes(bytes(1600))
    for source, complaint in (("empty", "no pictures"), ("sound.wav", "holds no video"), ("absent", "does not exist")):
        with_source = (*base, "--preprocess", files / "preprocess.json", "--calibration", tmp_path / source)
        ended = splitmesh_here(*with_source)
        assert ended.code == (2 if source == "absent" else 1)
        assert complaint in " ".join(ended.err.replace("│", " ").split())


def test_a_wrong_environment_is_named() -> None:
    assert "SPLITMESH_DISCOVERY" in refused(splitmesh_here("services", DISCOVERY="gossip"), "FIELD_INVALID")
    ended = splitmesh_here("models", "list", STATIC_ADDRESSES="registry")
    assert "service=host:port" in refused(ended, "FIELD_INVALID")
    nobody = splitmesh_here("models", "list", STATIC_ADDRESSES="head=127.0.0.1:1")
    assert "'registry'" in refused(nobody, "SERVICE_UNAVAILABLE")


def test_a_mesh_that_is_away_shows_as_unreachable() -> None:
    services = (splitmesh_here("services", "--json", STATIC_ADDRESSES="registry=127.0.0.1:1,tail=127.0.0.1:1")).json
    assert [(one["service"], one["health"]) for one in services] == [
        ("registry", "UNREACHABLE"),
        ("tail", "UNREACHABLE"),
    ]


def test_a_command_without_its_packages_says_how_to_get_them(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "splitmesh.model.load", None)
    monkeypatch.setattr(cli_app, "EXTRAS", {"splitmesh.model.load": "cloud"})
    ended = splitmesh_here("plan", files / "small.onnx", "--uplink-mbps", 5, "--rtt-ms", 30)
    assert ended.code == 1
    assert "pip install '.[cloud]' from the checkout, or splitmesh[cloud]" in ended.err


def test_the_installed_command_is_this_one() -> None:
    script = Path(sysconfig.get_path("scripts")) / "splitmesh"
    assert "from splitmesh.cli import main" in script.read_text()
    ended = splitmesh_here("--help")
    assert ended.code == 0
    fleet = ("nodes", "deploy", "deployments", "rollback", "tasks", "services")
    for command in ("infer", "stream", "models", "plan", "split", "compress", "route", "outcomes", *fleet):
        assert f" {command} " in ended.out
