"""The one question every server is asked, in each protocol, and whether its answer is right."""

from __future__ import annotations

import http.client
import io
import json

import grpc
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.pictures import TEST_SEED, natural_pictures
from benchmarks.serving.head import label
from benchmarks.serving.http1 import HttpCall
from benchmarks.serving.http2 import GrpcCall
from benchmarks.serving.nets import INPUT, OUTPUT, SIDE
from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.api.oip.v2 import grpc_service_pb2 as oip
from splitmesh.kernel.tensors import tensor_to_message

BOUNDARY = "splitmesh-bench"
TOLERANCE = 1e-3
MAX_MESSAGE_BYTES = 32 << 20
OIP_INFER = "/inference.GRPCInferenceService/ModelInfer"
OIP_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
INFER = "/splitmesh.api.inference.v1.InferenceService/Infer"
STREAM_INFER = "/splitmesh.api.inference.v1.InferenceService/StreamInfer"
DEADLINE_MS = 60_000
LABELS = 5
JPEG_QUALITY = 85


def oip_call(model: str, picture: NDArray[np.float32], *, stream: bool = False) -> GrpcCall:
    """The Open Inference Protocol, raw bytes in."""
    request = oip.ModelInferRequest(model_name=model, raw_input_contents=[picture.tobytes()])
    request.inputs.add(name=INPUT, datatype="FP32", shape=picture.shape)
    return GrpcCall(
        OIP_STREAM if stream else OIP_INFER, request.SerializeToString(), f"\n\x06{OUTPUT}".encode(), stream=stream
    )


def native_call(picture: NDArray[np.float32], scores: NDArray[np.float32], *, stream: bool = False) -> GrpcCall:
    """InferenceService, a tensor in, the most probable classes out; the answer must name the best one."""
    request = pb.InferRequest(tensor=tensor_to_message("", picture), deadline_ms=DEADLINE_MS, max_labels=LABELS)
    best = label(int(np.argmax(scores))).encode()
    if not stream:
        return GrpcCall(INFER, request.SerializeToString(), best)
    return GrpcCall(
        STREAM_INFER, pb.StreamInferRequest(frame=request).SerializeToString(), best, stream=True, greeting=1
    )


def jpeg() -> bytes:
    """A picture as a camera sends it, about 20 KB."""
    file = io.BytesIO()
    Image.fromarray(natural_pictures(1, SIDE, TEST_SEED)[0]).save(file, format="JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def jpeg_call(still: bytes) -> GrpcCall:
    """StreamInfer with an encoded picture."""
    request = pb.InferRequest(image=still, deadline_ms=DEADLINE_MS, max_labels=LABELS)
    message = pb.StreamInferRequest(frame=request).SerializeToString()
    return GrpcCall(STREAM_INFER, message, label(0)[:-1].encode(), stream=True, greeting=1)


def upload_call(path: str, picture: NDArray[np.float32]) -> HttpCall:
    """A file upload; the answer is JSON."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{INPUT}"; filename="picture.f32"\r\n'
    body = (head + "Content-Type: application/octet-stream\r\n\r\n").encode() + picture.tobytes()
    return HttpCall(
        path,
        body + f"\r\n--{BOUNDARY}--\r\n".encode(),
        f"multipart/form-data; boundary={BOUNDARY}",
        f'"{OUTPUT}"'.encode(),
    )


def asked_once(address: str, call: GrpcCall | HttpCall) -> NDArray[np.float32]:
    """The scores a server gives, through an ordinary client; OSError or grpc.RpcError while it is not up."""
    if isinstance(call, HttpCall):
        return _over_http(address, call)
    options = [("grpc.max_send_message_length", MAX_MESSAGE_BYTES)]
    with grpc.insecure_channel(address, options=options) as channel:
        data = channel.unary_unary(OIP_INFER)(call.message, timeout=20.0)
    response = oip.ModelInferResponse.FromString(data)
    if response.raw_output_contents:
        return np.frombuffer(response.raw_output_contents[0], np.float32)
    return np.array(response.outputs[0].contents.fp32_contents, np.float32)


def _over_http(address: str, call: HttpCall) -> NDArray[np.float32]:
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request("POST", call.path, call.body, {"Content-Type": call.content_type})
        answer = connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise OSError(f"HTTP {answer.status}: {data[:200]!r}")
        return np.array(json.loads(data)[OUTPUT], np.float32).reshape(-1)
    finally:
        connection.close()


def same(found: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    """Whether these are the model's scores."""
    return found.size == expected.size and bool(np.allclose(found.reshape(-1), expected.reshape(-1), atol=TOLERANCE))
