"""`splitmesh stream` against a head that does what a test says: its exit code, and what it keeps of a long stream."""

from pathlib import Path

from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.cli.summary import StreamSummary, live
from splitmesh.client import Answer, FrameFailure, StreamCounts
from splitmesh.client.answers import answer_from_message
from splitmesh.errors import MeshError, Reason
from tests.integration.command_line import splitmesh
from tests.support.fake_head import FakeHead, answer_to, served

BROKEN = MeshError(Reason.IMAGE_UNDECODABLE, "the picture is broken")


async def answer_unless_broken(request: pb.InferRequest) -> pb.InferResponse:
    if request.image == b"broken":
        raise BROKEN
    return answer_to(request)


def folder(path: Path, *contents: bytes) -> Path:
    """A folder of "pictures", which the fake head names after their content."""
    path.mkdir()
    for number, content in enumerate(contents):
        (path / f"{number}.jpg").write_bytes(content)
    return path


async def test_a_frame_that_failed_makes_the_exit_code_one_after_all_were_answered(tmp_path: Path) -> None:
    source = folder(tmp_path / "some", b"joint", b"broken", b"joint", b"bridge")
    async with served(FakeHead(answer_unless_broken)) as head:
        summary = await splitmesh("stream", source, "--head", head.address)
        lines = await splitmesh("stream", source, "--head", head.address, "--json")
    assert (summary.code, lines.code) == (1, 1)
    assert (summary.err, lines.err) == ("", "")
    assert "4 frames" in summary.out
    assert "refused: IMAGE_UNDECODABLE" in summary.out
    assert len(lines.out.splitlines()) == 4


async def test_a_stream_without_failures_ends_with_code_zero(tmp_path: Path) -> None:
    async with served(FakeHead()) as head:
        ended = await splitmesh("stream", folder(tmp_path / "good", b"joint"), "--head", head.address, "--json")
    assert [line["labels"][0]["name"] for line in ended.lines] == ["joint"]


async def test_frames_that_gave_way_are_counted_and_are_no_failure(tmp_path: Path) -> None:
    async def newest_only(request: pb.InferRequest) -> pb.InferResponse:
        if request.frame_id < 2:
            raise MeshError(Reason.FRAME_SUPERSEDED, "a newer frame waits")
        return answer_to(request)

    source = folder(tmp_path / "some", b"a", b"b", b"c")
    options = ("--drop", "oldest", "--max-waiting", 3, "--order", "in-order", "--fps", 200)
    async with served(FakeHead(newest_only)) as head:
        summary = await splitmesh("stream", source, "--head", head.address, *options)
        lines = await splitmesh("stream", source, "--head", head.address, *options, "--json")
    assert summary.code == 0, summary
    assert "superseded by newer frames" in summary.out
    assert "refused" not in summary.out
    assert [line["frame_id"] for line in lines.lines] == [0, 1, 2]
    wanted = pb.StreamOptions(order=pb.ANSWER_ORDER_IN_ORDER, drop=pb.DROP_POLICY_OLDEST, max_waiting=3)
    assert head.options == [wanted] * 2


async def test_of_several_heads_one_that_is_well_is_used(tmp_path: Path) -> None:
    async with served(FakeHead()) as head:
        heads = f"127.0.0.1:1,{head.address}"
        named = await splitmesh("infer", folder(tmp_path / "one", b"joint") / "0.jpg", "--head", heads, "--json")
        source = folder(tmp_path / "more", b"a", b"b")
        listed = await splitmesh("stream", source, "--json", HEAD=heads)
    assert named.json["labels"][0]["name"] == "joint"
    assert len(listed.lines) == 2


async def test_without_a_head_named_those_that_consul_knows_are_asked(tmp_path: Path) -> None:
    picture = folder(tmp_path / "one", b"joint") / "0.jpg"
    settings = {"DISCOVERY": "consul", "CONSUL_ADDRESS": "127.0.0.1:1"}
    ended = await splitmesh("infer", picture, "--deadline-ms", 200, **settings)
    assert ended.code == 1
    assert "none is known as 'head'" in ended.err


def answer(total_ms: float) -> Answer:
    message = pb.InferResponse(answered_by=pb.ANSWERED_BY_CLOUD_TAIL, timings=pb.Timings(total_ms=total_ms))
    return answer_from_message(message)


def test_a_summary_counts_every_frame_and_takes_percentiles_of_the_last() -> None:
    summary = StreamSummary(max_latencies=3)
    for total_ms in range(1, 9):
        summary.add(answer(total_ms))
    summary.add(FrameFailure(8, BROKEN))
    summary.add(FrameFailure(9, MeshError(Reason.FRAME_SUPERSEDED, "a newer frame waits")))
    assert summary.failed == 1
    assert summary.rows() == [
        ["CLOUD_TAIL", 8, 0.8, 7.0, 8.0],
        ["refused: IMAGE_UNDECODABLE", 1, 0.1, "", ""],
        ["superseded by newer frames", 1, 0.1, "", ""],
    ]


def test_a_running_stream_is_told_in_one_line() -> None:
    assert live(StreamCounts(sent=9, answered=5, superseded=2)) == "5 answered, 0 failed, 2 superseded"
    assert live(StreamCounts(answered=1, resent=3, reconnected=1)).endswith("3 sent again, 1 reconnected")
