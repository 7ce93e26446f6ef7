"""Which fields of which messages are large: pictures, tensors and payloads that cross without being copied by protobuf.

Copies of a frame that is read, between the socket and numpy, with grpcio 1.85: from the kernel to slices, from these to a
bytearray and from that to the bytes that a deserializer gets. A lifted field is a view of these; otherwise protobuf copies it
into its arena, and out of it at every access. Of a frame that is written: a lifted field is copied into the message's bytes
and from there into a slice; otherwise protobuf copies it when it is set, when it is encoded and when that becomes bytes.
"""

from __future__ import annotations

from splitmesh.api.inference.v1 import inference_pb2
from splitmesh.api.segment.v1 import segment_pb2
from splitmesh.kernel.wire import LargeFields

INFER_REQUEST = LargeFields(inference_pb2.InferRequest, "image", "tensor.data", "tensors.tensors.data")
STREAM_INFER_REQUEST = LargeFields(
    inference_pb2.StreamInferRequest, "frame.image", "frame.tensor.data", "frame.tensors.tensors.data"
)
INFER_RESPONSE = LargeFields(inference_pb2.InferResponse, "outputs.data")
STREAM_INFER_RESPONSE = LargeFields(inference_pb2.StreamInferResponse, "result.outputs.data")
RUN_REQUEST = LargeFields(segment_pb2.RunRequest, "frame.payload", "chunk.data")
RUN_RESPONSE = LargeFields(segment_pb2.RunResponse, "result.outputs.data")
