"""BentoML: a file upload over HTTP, one worker process per core."""

import os
import subprocess
import sys
from pathlib import Path

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(workers="cpu_count", logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Net:
    """The model."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    @bentoml.api
    def predict(self, picture: Path) -> dict:
        """Raw float32."""
        tensor = np.fromfile(picture, np.float32).reshape(1, 3, 224, 224)
        return {"scores": self.session.run(["scores"], {"picture": tensor})[0].tolist()}


if __name__ == "__main__":
    folder, name = os.path.split(os.path.abspath(__file__))
    environment = {**os.environ, "MODEL": sys.argv[1], "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "bentoml", "serve", f"{name[:-3]}:Net"]
    command += ["--host", "127.0.0.1", "--port", sys.argv[2]]
    raise SystemExit(subprocess.run(command, cwd=folder, env=environment).returncode)
