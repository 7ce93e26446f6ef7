"""pytriton: Triton's gRPC front end with a Python back end, dynamic batches of up to 8, one instance per core."""

import logging
import os
import sys

import numpy as np
import onnxruntime as ort
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def instance(path: str):
    """The model."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    classes = session.get_outputs()[0].shape[1]

    @batch
    def infer(picture: np.ndarray) -> dict[str, np.ndarray]:
        return {"scores": session.run(["scores"], {"picture": picture})[0]}

    return infer, classes


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    port = int(sys.argv[2])
    config = TritonConfig(grpc_port=port, http_port=port + 1, allow_metrics=False, grpc_address="127.0.0.1")
    instances = [instance(sys.argv[1]) for _ in range(os.cpu_count() or 1)]
    with Triton(config=config) as triton:
        triton.bind(
            model_name="net",
            infer_func=[infer for infer, _ in instances],
            inputs=[Tensor(name="picture", dtype=np.float32, shape=(3, 224, 224))],
            outputs=[Tensor(name="scores", dtype=np.float32, shape=(instances[0][1],))],
            config=ModelConfig(max_batch_size=8, batcher=DynamicBatcher()),
        )
        triton.serve()
