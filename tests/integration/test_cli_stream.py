"""`splitmesh stream` against a head that does what a test says: its exit code, and what it keeps of a long stream."""

from pathlib import Path

from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.cli.summary import StreamSummary
from splitmesh.client import Answer, FrameFailure
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


def answer(total_ms: float) -> Answer:
    message = pb.InferResponse(answered_by=pb.ANSWERED_BY_CLOUD_TAIL, timings=pb.Timings(total_ms=total_ms))
    return answer_from_message(message)


def test_a_summary_counts_every_frame_and_takes_percentiles_of_the_last() -> None:
    summary = StreamSummary(max_latencies=3)
    for total_ms in range(1, 9):
        summary.add(answer(total_ms))
    for frame_id in range(2):
        summary.add(FrameFailure(frame_id, BROKEN))
    assert summary.failed == 2
    assert summary.rows() == [
        ["CLOUD_TAIL", 8, 0.8, 7.0, 8.0],
        ["refused: IMAGE_UNDECODABLE", 2, 0.2, "", ""],
    ]
