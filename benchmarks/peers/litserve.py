"""LitServe: a file upload over HTTP, one worker process per core, its fast queue."""

import json
import os
import sys

import litserve as ls
import numpy as np
import onnxruntime as ort
from fastapi import Request, Response


class Net(ls.LitAPI):
    """The model."""

    def setup(self, device: str) -> None:
        """In each worker."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    def decode_request(self, request: Request) -> np.ndarray:
        """Raw float32."""
        return np.frombuffer(request["picture"].file.read(), np.float32).reshape(1, 3, 224, 224)

    def predict(self, picture: np.ndarray) -> np.ndarray:
        """One sample."""
        return self.session.run(["scores"], {"picture": picture})[0]

    def encode_response(self, scores: np.ndarray) -> Response:
        """JSON."""
        return Response(json.dumps({"scores": scores.tolist()}), media_type="application/json")


if __name__ == "__main__":
    os.environ["MODEL"] = sys.argv[1]
    server = ls.LitServer(Net(), accelerator="cpu", workers_per_device=os.cpu_count(), fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), log_level="error", generate_client_file=False)
