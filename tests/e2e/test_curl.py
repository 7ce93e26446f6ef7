"""A client that knows nothing of us but the address: buf curl with reflection says what the SDK says, by both protocols."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.rpc import error_details_pb2

from splitmesh.tensor.spec import DTYPES
from splitmesh.testing.parts import find_buf, require_part
from tests.e2e.conftest import Factory
from tests.support.models import HARD, HARD_LABEL, SIDE, picture
from tests.support.oip import logits
from tests.support.worlds import MODEL

pytestmark = pytest.mark.asyncio(loop_scope="session")

OPEN_INFERENCE = "inference.GRPCInferenceService"
METHOD = "splitmesh.api.inference.v1.InferenceService/Infer"
BUF_HINT = "npm install --prefix build/tools @bufbuild/buf"


@pytest.fixture
def buf() -> Path:
    found = find_buf()
    require_part("buf", found is not None, BUF_HINT)
    assert found is not None
    return found


async def curl(
    buf: Path, address: str, request: dict[str, Any], cache: Path, method: str = METHOD
) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        buf,
        *("curl", "--protocol", "grpc", "--http2-prior-knowledge", "--data", json.dumps(request)),
        f"http://{address}/{method}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "BUF_CACHE_DIR": str(cache)},
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_curl_and_the_sdk_get_the_same_answer(factory: Factory, buf: Path, tmp_path: Path) -> None:
    image = picture(HARD)
    request = {"image": base64.b64encode(image).decode(), "frameId": "7", "deadlineMs": 5000}
    code, out, err = await curl(buf, factory.mesh.address("head"), request, tmp_path)
    assert code == 0, err
    by_curl = json.loads(out)
    async with factory.mesh.gateway() as gateway:
        by_sdk = await gateway.infer(image, deadline_ms=5000)
    assert (by_curl["frameId"], by_curl["answeredBy"]) == ("7", f"ANSWERED_BY_{by_sdk.answered_by}")
    assert [one["name"] for one in by_curl["labels"]] == [one.name for one in by_sdk.labels]
    assert by_curl["labels"][0]["name"] == HARD_LABEL
    assert by_curl["labels"][0]["score"] == pytest.approx(by_sdk.label.score, rel=1e-6)


async def test_curl_shows_the_reason_of_a_refusal(factory: Factory, buf: Path, tmp_path: Path) -> None:
    request = {"image": base64.b64encode(b"no picture").decode()}
    code, out, err = await curl(buf, factory.mesh.address("head"), request, tmp_path)
    assert code != 0
    assert out == ""
    refusal = json.loads(err)
    (detail,) = refusal["details"]
    info = error_details_pb2.ErrorInfo.FromString(base64.b64decode(detail["value"] + "=="))
    assert (refusal["code"], detail["type"], info.reason) == (
        "invalid_argument",
        "google.rpc.ErrorInfo",
        "IMAGE_UNDECODABLE",
    )


@pytest.mark.parametrize("server", ["head", "tail"])
async def test_curl_asks_by_the_open_inference_protocol(
    factory: Factory, buf: Path, tmp_path: Path, server: str
) -> None:
    address = factory.mesh.address(server)
    code, out, err = await curl(buf, address, {}, tmp_path, f"{OPEN_INFERENCE}/ServerLive")
    assert (code, json.loads(out)) == (0, {"live": True}), err
    tensor = {
        "name": "image",
        "datatype": "FP32",
        "shape": [1, 1, SIDE, SIDE],
        "contents": {"fp32Contents": [round(HARD * 255) / 255] * SIDE * SIDE},
    }
    request = {"modelName": MODEL, "id": "7", "inputs": [tensor]}
    code, out, err = await curl(buf, address, request, tmp_path, f"{OPEN_INFERENCE}/ModelInfer")
    assert code == 0, err
    answer = json.loads(out)
    assert (answer["modelVersion"], answer["id"]) == ("1", "7")
    assert answer["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": ["1", "3"]}]
    raw = np.frombuffer(base64.b64decode(answer["rawOutputContents"][0]), DTYPES["float32"])
    assert raw == pytest.approx(logits(HARD)[0], abs=1e-3)


async def test_curl_shows_why_the_open_inference_protocol_refuses(factory: Factory, buf: Path, tmp_path: Path) -> None:
    request = {"modelName": "nobody"}
    code, out, err = await curl(buf, factory.mesh.address("tail"), request, tmp_path, f"{OPEN_INFERENCE}/ModelInfer")
    assert (code != 0, out) == (True, "")
    assert json.loads(err)["code"] == "not_found"
