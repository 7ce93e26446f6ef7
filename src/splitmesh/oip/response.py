"""Outputs as a ModelInferResponse: always raw, in the order that was asked for, or as the largest classes."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence

import numpy as np

from splitmesh.api.oip.v2 import grpc_service_pb2 as pb
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.oip.datatypes import BYTES, DATATYPE_OF
from splitmesh.oip.parameters import Value, set_parameter
from splitmesh.oip.request import WantedOutput
from splitmesh.tensor.spec import Array, Buffer, as_bytes


def check_wanted(wanted: Sequence[WantedOutput], names: Sequence[str]) -> None:
    """FIELD_INVALID for an output that the model does not have: before anything is computed."""
    for one in wanted:
        if one.name not in names:
            raise field_error("outputs", f"the model has no output {one.name!r}; it has {', '.join(names)}")


def response_to_message(
    *,
    model: str,
    version: str,
    request_id: str,
    outputs: Mapping[str, Array],
    wanted: Sequence[WantedOutput],
    labels: Mapping[str, Sequence[str]],
    parameters: Mapping[str, Value],
) -> tuple[pb.ModelInferResponse, tuple[Buffer, ...]]:
    """The answer without ``raw_output_contents``, and these beside it.

    ``outputs`` are ``[n, ...]`` by name in the model's order, ``labels`` the names of classes of an output. UNIMPLEMENTED for an
    element type that the protocol has no name for.
    """
    message = pb.ModelInferResponse(model_name=model, model_version=version, id=request_id)
    for name, value in parameters.items():
        set_parameter(message.parameters[name], value)
    raw: list[Buffer] = []
    for one in wanted or [WantedOutput(name) for name in outputs]:
        array = outputs[one.name]
        if one.classes:
            shape, data = _largest(array, one.classes, labels.get(one.name, ()))
            message.outputs.add(name=one.name, datatype=BYTES, shape=shape)
            raw.append(data)
            continue
        datatype = DATATYPE_OF.get(array.dtype.name)
        if datatype is None:
            raise MeshError(Reason.UNIMPLEMENTED, f"output {one.name!r} has elements of {array.dtype.name}")
        message.outputs.add(name=one.name, datatype=datatype, shape=array.shape)
        raw.append(as_bytes(array))
    return message, tuple(raw)


def bytes_tensor(elements: Sequence[bytes]) -> bytes:
    """Elements of any length, each after its length in 4 bytes."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def _largest(array: Array, count: int, labels: Sequence[str]) -> tuple[tuple[int, int], bytes]:
    """The ``count`` largest of each sample as "score:index:label", without the last part where there is no label, as Triton's
    classification extension writes them."""
    rows = array.reshape(len(array), math.prod(array.shape[1:])) if array.ndim else array.reshape(1, 1)
    count = min(count, rows.shape[1])
    # By value, equal ones by index; a NaN is the smallest.
    order = np.argsort(np.nan_to_num(-rows.astype(np.float64), nan=np.inf), axis=1, kind="stable")[:, :count]
    texts = [
        f"{float(row[index]):f}:{index}" + (f":{labels[index]}" if index < len(labels) else "")
        for row, places in zip(rows, order.tolist(), strict=True)
        for index in places
    ]
    return (len(rows), count), bytes_tensor([text.encode() for text in texts])
