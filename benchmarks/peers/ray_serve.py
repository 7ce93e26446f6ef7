"""Ray Serve: its gRPC proxy with the Open Inference Protocol's proto, one replica per core."""

import os
import sys
import time

import numpy as np
import onnxruntime as ort
import ray
from ray import serve
from ray.serve.config import gRPCOptions

from splitmesh.api.oip.v2.grpc_service_pb2 import ModelInferRequest, ModelInferResponse

ADD = "splitmesh.api.oip.v2.grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"


@serve.deployment(num_replicas=os.cpu_count(), ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=32)
class Net:
    """The model."""

    def __init__(self, path: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    async def ModelInfer(self, request: ModelInferRequest) -> ModelInferResponse:
        """One request."""
        picture = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(request.inputs[0].shape)
        scores = self.session.run(["scores"], {"picture": picture})[0]
        response = ModelInferResponse(model_name="net", raw_output_contents=[scores.tobytes()])
        response.outputs.add(name="scores", datatype="FP32", shape=scores.shape)
        return response


if __name__ == "__main__":
    ray.init(log_to_driver=False, include_dashboard=False, num_cpus=os.cpu_count())
    port = int(sys.argv[2])
    serve.start(
        grpc_options=gRPCOptions(port=port, grpc_servicer_functions=[ADD]),
        http_options={"host": "127.0.0.1", "port": port + 1},
    )
    serve.run(Net.bind(sys.argv[1]))
    while True:
        time.sleep(3600)
