"""The Open Inference Protocol by hand, with the product's own stubs: requests, calls, answers as arrays."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np

from splitmesh.api.oip.v2 import grpc_service_pb2 as pb
from splitmesh.api.oip.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from splitmesh.errors import MeshError
from splitmesh.kernel.channels import open_channel
from splitmesh.kernel.errors import from_rpc_error
from splitmesh.oip.datatypes import DATATYPE_OF, DTYPE_OF
from splitmesh.oip.parameters import set_parameter
from splitmesh.oip.response import bytes_tensor
from splitmesh.runtime import open_session
from splitmesh.tensor.spec import DTYPES, Array
from tests.support.models import SIDE, whole_model

DEADLINE_S = 20.0


def planes(*brightness: float, side: int = SIDE) -> dict[str, Array]:
    """The model's input for such pictures."""
    values = np.array([round(one * 255) / 255 for one in brightness], np.float32)
    return {"image": np.ascontiguousarray(np.broadcast_to(values[:, None, None, None], (len(values), 1, side, side)))}


def logits(brightness: float, side: int = SIDE) -> Array:
    """What the whole model gives."""
    return open_session(whole_model(side)).run(planes(brightness, side=side))["logits"]


def request(
    model: str,
    tensors: Mapping[str, Array | Sequence[bytes]],
    *,
    request_id: str = "",
    version: str = "",
    outputs: Mapping[str, int] | None = None,
    parameters: Mapping[str, bool | int | float | str] | None = None,
) -> pb.ModelInferRequest:
    """Raw; a list of bytes becomes BYTES. ``outputs``: names, with the number of classes or 0."""
    message = pb.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, value in tensors.items():
        if isinstance(value, np.ndarray):
            message.inputs.add(name=name, datatype=DATATYPE_OF[value.dtype.name], shape=value.shape)
            message.raw_input_contents.append(value.tobytes())
        else:
            message.inputs.add(name=name, datatype="BYTES", shape=[len(value)])
            message.raw_input_contents.append(bytes_tensor(list(value)))
    for name, classes in (outputs or {}).items():
        wanted = message.outputs.add(name=name)
        if classes:
            wanted.parameters["classification"].int64_param = classes
    for name, parameter in (parameters or {}).items():
        set_parameter(message.parameters[name], parameter)
    return message


def arrays(response: pb.ModelInferResponse) -> dict[str, Array]:
    """The outputs that are tensors."""
    return {
        one.name: np.frombuffer(raw, DTYPES[DTYPE_OF[one.datatype]]).reshape(one.shape)
        for one, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def said(response: pb.ModelInferResponse) -> dict[str, Any]:
    """The parameters of an answer."""
    return {
        name: getattr(value, str(value.WhichOneof("parameter_choice"))) for name, value in response.parameters.items()
    }


class OipClient:
    """Calls of one server; errors come as MeshError."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = GRPCInferenceServiceStub(channel)

    async def call(self, method: str, message: Any, timeout: float | None = DEADLINE_S) -> Any:
        try:
            return await getattr(self.stub, method)(message, timeout=timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    async def infer(self, message: pb.ModelInferRequest, timeout: float | None = DEADLINE_S) -> pb.ModelInferResponse:
        response: pb.ModelInferResponse = await self.call("ModelInfer", message, timeout)
        return response

    async def stream(self, messages: Sequence[pb.ModelInferRequest]) -> list[pb.ModelStreamInferResponse]:
        """All sent, then closed; every answer."""
        call = self.stub.ModelStreamInfer(iter(messages), timeout=DEADLINE_S)
        try:
            return [response async for response in call]
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error


@asynccontextmanager
async def oip_client(address: str) -> AsyncIterator[OipClient]:
    """A client of the server there."""
    async with open_channel(address) as channel:
        yield OipClient(channel)


async def refusal(client: OipClient, message: pb.ModelInferRequest, timeout: float | None = DEADLINE_S) -> MeshError:
    """What kept a request from an answer; AssertionError when it got one."""
    try:
        await client.infer(message, timeout)
    except MeshError as error:
        return error
    raise AssertionError("it was answered")
