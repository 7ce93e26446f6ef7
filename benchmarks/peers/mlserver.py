"""MLServer: a custom runtime over gRPC, one parallel worker process per core."""

import json
import os
import sys
import tempfile
from pathlib import Path

import onnxruntime as ort
from mlserver import MLModel
from mlserver.cli import main
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Net(MLModel):
    """The model."""

    async def load(self) -> bool:
        """In each worker."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One request."""
        picture = NumpyCodec.decode_input(payload.inputs[0])
        scores = self.session.run(["scores"], {"picture": picture})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("scores", scores)])


if __name__ == "__main__":
    port = int(sys.argv[2])
    folder = Path(tempfile.mkdtemp(prefix="mlserver-"))
    (folder / "net_runtime.py").write_text(Path(__file__).read_text())
    (folder / "settings.json").write_text(
        json.dumps(
            {
                "host": "127.0.0.1",
                "grpc_port": port,
                "http_port": port + 1,
                "metrics_port": port + 2,
                "parallel_workers": os.cpu_count(),
                "grpc_max_message_length": 32 << 20,
                "debug": False,
            }
        )
    )
    (folder / "model-settings.json").write_text(json.dumps({"name": "net", "implementation": "net_runtime.Net"}))
    os.environ["MODEL"] = sys.argv[1]
    sys.argv = ["mlserver", "start", str(folder)]
    main()
