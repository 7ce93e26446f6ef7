"""KServe's Python server: a custom model over gRPC, computed on the server's event loop as in its examples."""

import logging
import sys

import kserve
import onnxruntime as ort


class Net(kserve.Model):
    """The model."""

    def __init__(self, path: str) -> None:
        super().__init__("net")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.ready = True

    def predict(self, payload: kserve.InferRequest, headers=None, response_headers=None) -> kserve.InferResponse:
        """One request."""
        scores = self.session.run(["scores"], {"picture": payload.inputs[0].as_numpy()})[0]
        output = kserve.InferOutput("scores", list(scores.shape), "FP32")
        output.set_data_from_numpy(scores, binary_data=True)
        return kserve.InferResponse(payload.id, "net", [output])


if __name__ == "__main__":
    logging.disable(logging.INFO)
    port = int(sys.argv[2])
    server = kserve.ModelServer(http_port=port + 1, grpc_port=port, workers=1, enable_latency_logging=False)
    server.start([Net(sys.argv[1])])
