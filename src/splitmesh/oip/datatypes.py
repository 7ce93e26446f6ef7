"""Element types: the protocol's names and ours, and in which field typed contents carry them."""

from __future__ import annotations

from splitmesh.api.oip.v2 import model_config_pb2 as config_pb
from splitmesh.errors import MeshError, Reason

BYTES = "BYTES"
"""Elements of any length, such as encoded pictures; no tensor of a model."""

DTYPE_OF: dict[str, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
"""Our name of every element type that a tensor may have, by the protocol's."""

DATATYPE_OF: dict[str, str] = {dtype: datatype for datatype, dtype in DTYPE_OF.items()}

CONTENTS_FIELD: dict[str, str] = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "INT8": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
"""Where typed contents stand; FP16 has no such field and crosses raw only."""


def dtype_of(tensor: str, datatype: str) -> str:
    """Our name of a tensor's element type; TENSOR_DTYPE_MISMATCH for one that no model takes."""
    dtype = DTYPE_OF.get(datatype)
    if dtype is None:
        raise MeshError(
            Reason.TENSOR_DTYPE_MISMATCH,
            f"tensor {tensor!r} has datatype {datatype!r}; accepted: {', '.join(DTYPE_OF)} and {BYTES}",
        )
    return dtype


def config_type(dtype: str) -> config_pb.DataType.ValueType:
    """As a model's configuration names it."""
    return config_pb.DataType.Value(f"TYPE_{DATATYPE_OF[dtype]}")
