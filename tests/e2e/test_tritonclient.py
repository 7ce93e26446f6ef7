"""NVIDIA's tritonclient and perf_analyzer, unmodified, against a real head and a real tail."""

from __future__ import annotations

import asyncio
import json
import platform
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from splitmesh.testing.parts import find_perf_analyzer, find_tritonclient, require_part
from tests.e2e.conftest import Factory
from tests.support.models import HARD, HARD_LABEL, SIDE, picture
from tests.support.oip import logits
from tests.support.worlds import MODEL, ROOT

pytestmark = pytest.mark.asyncio(loop_scope="session")

SCRIPT = ROOT / "tests" / "support" / "triton_script.py"
SERVERS = ("head", "tail")
WAIT_S = 90.0
LARGE_SIDE = 2000
"""Of pictures that take more than a millisecond to decode."""
WHO = {"head": "CLOUD_TAIL", "tail": "CLOUD_WHOLE"}


async def run(program: Path, *arguments: object) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        program, *map(str, arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(WAIT_S):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    return process.returncode, out.decode(), err.decode()


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def asked(running: Factory, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tritonclient got, by server."""
    python = find_tritonclient()
    require_part("tritonclient", python is not None)
    assert python is not None
    await running.settle()
    folder = tmp_path_factory.mktemp("triton")
    image, large = folder / "hard.png", folder / "large.png"
    image.write_bytes(picture(HARD))
    large.write_bytes(picture(HARD, side=LARGE_SIDE))
    brightness = round(HARD * 255) / 255
    found = {}
    for server in SERVERS:
        code, out, err = await run(python, SCRIPT, running.mesh.address(server), MODEL, image, large, brightness)
        assert code == 0, err
        found[server] = json.loads(out)
        print(f"{server}: {found[server]['milliseconds']:.2f} ms a request of tritonclient at one at a time")
    return found


@pytest.mark.parametrize("server", SERVERS)
async def test_it_reads_what_server_and_model_are(asked: dict[str, Any], server: str) -> None:
    facts = asked[server]["facts"]
    assert (facts["live"], facts["ready"], facts["model_ready"]) == (True, True, [True, False])
    assert facts["server"]["name"] == "splitmesh"
    assert facts["metadata"]["inputs"] == [
        {"name": "image", "datatype": "FP32", "shape": ["-1", "1", *[str(SIDE)] * 2]}
    ]
    assert facts["config"]["input"][0]["data_type"] == "TYPE_FP32"
    assert facts["config"]["max_batch_size"] > 1
    assert {"name": MODEL, "version": "1", "state": "READY"} in facts["index"]
    assert facts["shared_memory"] == {}
    assert facts["register"][0] == "StatusCode.UNIMPLEMENTED"


@pytest.mark.parametrize("server", SERVERS)
async def test_it_gets_the_whole_models_outputs(asked: dict[str, Any], server: str) -> None:
    answers, expected = asked[server]["answers"], logits(HARD).tolist()
    for kind in ("tensor", "picture", "compressed", "callback", "in_time"):
        assert answers[kind]["output"][0] == pytest.approx(expected[0], abs=1e-3), kind
        assert (answers[kind]["answered_by"], answers[kind]["version"]) == (WHO[server], "1")
    assert answers["tensor"]["id"] == "one"
    assert len(answers["batch"]["output"]) == 3
    assert answers["batch"]["answered_by"] == ",".join([WHO[server]] * 3)
    assert answers["classes"].endswith(f":1:{HARD_LABEL}")


@pytest.mark.parametrize("server", SERVERS)
async def test_it_is_told_what_was_wrong(asked: dict[str, Any], server: str) -> None:
    answers = asked[server]["answers"]
    assert answers["no_output"][0] == "StatusCode.INVALID_ARGUMENT"
    assert "no output 'x'" in answers["no_output"][1]
    assert answers["no_model"][0] == "StatusCode.NOT_FOUND"
    assert answers["too_late"][0] == "StatusCode.DEADLINE_EXCEEDED"


@pytest.mark.parametrize("server", SERVERS)
async def test_its_streams_keep_ids_and_survive_an_error(asked: dict[str, Any], server: str) -> None:
    streams = {"s": asked[server]["stream"], "a": asked[server]["aio"]["streamed"]}
    for letter, answers in streams.items():
        assert [answered for answered, _ in answers] == [f"{letter}{n}" if n != 3 else "" for n in range(6)]
        assert [bool(error) for _, error in answers] == [n == 3 for n in range(6)]
        assert "MODEL_NOT_FOUND" in answers[3][1]
    assert asked[server]["aio"]["alone"]["id"] == "aio"


@pytest.mark.parametrize("server", SERVERS)
async def test_it_reads_counts(asked: dict[str, Any], server: str) -> None:
    statistics = asked[server]["statistics"]
    inference = statistics["inference_stats"]
    assert int(statistics["inference_count"]) >= int(inference["success"]["count"]) > 15
    assert int(inference["fail"]["count"]) >= 1
    for part in ("success", "compute_input", "compute_infer", "compute_output"):
        assert int(inference[part]["ns"]) > 0


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("way", [(), ("--streaming", "--async")], ids=["calls", "stream"])
async def test_perf_analyzer_measures_without_an_error(factory: Factory, server: str, way: tuple[str, ...]) -> None:
    program = find_perf_analyzer()
    if program is None and platform.machine() != "x86_64":
        pytest.skip(f"NVIDIA gives no perf_analyzer for {platform.machine()}")
    require_part("perf_analyzer", program is not None)
    assert program is not None
    code, out, err = await run(
        program,
        *("-m", MODEL, "-u", factory.mesh.address(server), "-i", "grpc", "-b", "2", "--concurrency-range", "2"),
        # It goes on until it finds the figures stable: on a busy machine that is never.
        *("--measurement-mode", "count_windows", "--measurement-request-count", "20", "-s", "999", "-r", "3", *way),
    )
    assert code == 0, out + err
    assert "Successful request count" in out
    assert "Failed" not in out
