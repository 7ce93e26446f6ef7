"""Joint inference over the protocol of KubeEdge Sedna 0.7: the sample as nested lists of numbers in a JSON body over HTTP.

Written after its behaviour, on the standard library alone: without FastAPI, uvicorn and requests it costs less than the
original. ``python -m benchmarks.sedna`` is the cloud side; it prints its port. Its model is a mean over the picture.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
from numpy.typing import NDArray

PATH = "/sedna/predict"


class Predict(BaseHTTPRequestHandler):
    """What the cloud's worker answers."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one segment for an answer

    def do_POST(self) -> None:
        """One sample."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        scores = np.asarray(body["data"], dtype=np.float32).mean(axis=(2, 3))
        answer = json.dumps({"result": scores.tolist()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class Edge:
    """The edge's side of it, on one connection that is kept."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)

    def predict(self, sample: NDArray[np.float32]) -> NDArray[np.float32]:
        """The cloud's scores for one sample ``[1, channels, height, width]``."""
        body = json.dumps({"data": sample.tolist()})
        self._connection.request("POST", PATH, body, {"Content-Type": "application/json"})
        answer = json.loads(self._connection.getresponse().read())
        return np.asarray(answer["result"], dtype=np.float32)


def body_bytes(sample: NDArray[np.float32]) -> int:
    """Size of a sample's body."""
    return len(json.dumps({"data": sample.tolist()}))


@contextmanager
def cloud() -> Iterator[tuple[int, int]]:
    """The cloud side as a process: its process id and its port."""
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.sedna"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Entry point of the cloud side."""
    with HTTPServer(("127.0.0.1", 0), Predict) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
