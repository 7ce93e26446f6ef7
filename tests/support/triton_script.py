"""Runs in the environment of NVIDIA's unmodified tritonclient: asks a server everything and prints what it got as JSON.

usage: python triton_script.py (SERVER:PORT MODEL PICTURE LARGE_PICTURE BRIGHTNESS | descriptors)
"""

from __future__ import annotations

import asyncio
import base64
import json
import queue
import sys
import time
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

WAIT_S = 30.0
TIMED = 200


class Asking:
    def __init__(self, server: str, model: str, picture: bytes, large: bytes, brightness: float) -> None:
        self.server, self.model, self.picture, self.large = server, model, picture, large
        self.client = triton.InferenceServerClient(server)
        metadata = self.client.get_model_metadata(model)
        self.name, self.shape = metadata.inputs[0].name, list(metadata.inputs[0].shape)[1:]
        self.output = metadata.outputs[0].name
        self.brightness = brightness

    def tensor(self, samples: int = 1) -> triton.InferInput:
        made = triton.InferInput(self.name, [samples, *self.shape], "FP32")
        made.set_data_from_numpy(np.full([samples, *self.shape], self.brightness, np.float32))
        return made

    def encoded(self, *pictures: bytes) -> triton.InferInput:
        made = triton.InferInput(self.name, [len(pictures)], "BYTES")
        made.set_data_from_numpy(np.array(pictures, dtype=np.object_))
        return made

    def said(self, result: Any) -> dict[str, Any]:
        response = result.get_response()
        return {
            "id": response.id,
            "version": response.model_version,
            "answered_by": response.parameters["answered_by"].string_param,
            "output": result.as_numpy(self.output).tolist(),
        }

    def refused(self, call: Any) -> list[str]:
        try:
            call()
        except InferenceServerException as error:
            return [str(error.status()), error.message()]
        return []

    def facts(self) -> dict[str, Any]:
        client = self.client
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": [client.is_model_ready(self.model), client.is_model_ready("nobody")],
            "server": client.get_server_metadata(as_json=True),
            "metadata": client.get_model_metadata(self.model, as_json=True),
            "config": client.get_model_config(self.model, as_json=True)["config"],
            "index": client.get_model_repository_index(as_json=True)["models"],
            "shared_memory": client.get_system_shared_memory_status(as_json=True),
            "register": self.refused(lambda: client.register_system_shared_memory("a", "/a", 8)),
        }

    def answers(self) -> dict[str, Any]:
        client, model = self.client, self.model
        classes = [triton.InferRequestedOutput(self.output, class_count=1)]
        done: queue.Queue[Any] = queue.Queue()
        client.async_infer(model, [self.tensor()], callback=lambda result, error: done.put(error or result))
        later = client.async_infer(model, [self.tensor()], request_id="later", callback=lambda result, error: None)
        return {
            "tensor": self.said(client.infer(model, [self.tensor()], request_id="one")),
            "batch": self.said(client.infer(model, [self.tensor(3)])),
            "picture": self.said(client.infer(model, [self.encoded(self.picture)])),
            "compressed": self.said(client.infer(model, [self.tensor()], compression_algorithm="gzip")),
            "classes": client.infer(model, [self.tensor()], outputs=classes)
            .as_numpy(self.output)
            .tolist()[0][0]
            .decode(),
            "callback": self.said(done.get(timeout=WAIT_S)),
            "cancelled": later.cancel() is None,
            "no_output": self.refused(
                lambda: client.infer(model, [self.tensor()], outputs=[triton.InferRequestedOutput("x")])
            ),
            "no_model": self.refused(lambda: client.infer("nobody", [self.tensor()])),
            "too_late": self.refused(lambda: client.infer(model, [self.encoded(*[self.large] * 8)], timeout=1000)),
            "in_time": self.said(client.infer(model, [self.tensor()], timeout=20_000_000, client_timeout=WAIT_S)),
        }

    def stream(self) -> list[list[str]]:
        """Id and error of every answer to six requests, of which one names no model."""
        got: queue.Queue[Any] = queue.Queue()
        self.client.start_stream(lambda result, error: got.put((result, error)))
        for number in range(6):
            model = "nobody" if number == 3 else self.model
            self.client.async_stream_infer(
                model, [self.tensor()], request_id=f"s{number}", enable_empty_final_response=True
            )
        answers = [got.get(timeout=WAIT_S) for _ in range(6)]
        self.client.stop_stream()
        return [["" if error else result.get_response().id, str(error or "")] for result, error in answers]

    async def aio(self) -> dict[str, Any]:
        async with triton_aio.InferenceServerClient(self.server) as client:
            alone = self.said(await client.infer(self.model, [self.tensor()], request_id="aio"))

            async def requests() -> Any:
                for number in range(6):
                    model = "nobody" if number == 3 else self.model
                    yield {"model_name": model, "inputs": [self.tensor()], "request_id": f"a{number}"}

            streamed = []
            async for result, error in client.stream_infer(requests(), stream_timeout=WAIT_S):
                streamed.append(["" if error else result.get_response().id, str(error or "")])
        return {"alone": alone, "streamed": streamed}

    def statistics(self) -> dict[str, Any]:
        return self.client.get_inference_statistics(self.model, as_json=True)["model_stats"][0]

    def milliseconds(self) -> float:
        """Of one request at a time."""
        tensor = self.tensor()
        begun = time.perf_counter()
        for _ in range(TIMED):
            self.client.infer(self.model, [tensor])
        return (time.perf_counter() - begun) / TIMED * 1e3


def main() -> None:
    if sys.argv[1] == "descriptors":
        files = [module.DESCRIPTOR.serialized_pb for module in (model_config_pb2, service_pb2)]
        print(json.dumps([base64.b64encode(content).decode() for content in files]))
        return
    server, model, picture, large, brightness = sys.argv[1:]
    with open(picture, "rb") as file, open(large, "rb") as large_file:
        asking = Asking(server, model, file.read(), large_file.read(), float(brightness))
    found = {"facts": asking.facts(), "answers": asking.answers(), "stream": asking.stream()}
    found["aio"] = asyncio.run(asking.aio())
    found |= {"statistics": asking.statistics(), "milliseconds": asking.milliseconds()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
