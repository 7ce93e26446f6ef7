"""The child process that reads a model nobody trusts yet: ``python check_model.py FILE MEMORY_BYTES CPU_S``.

Limits itself before it reads, because 92 bytes of ONNX can ask for 12 GB (measured). Answers one JSON object on
standard output: ``{"ok": true, "inputs": [name, ...], "outputs": [name, ...]}`` or ``{"ok": false, "reason": ...,
"message": ...}``. Knows no registry.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from splitmesh.errors import MeshError, Reason

MAX_NAMES_CHARS = 32 * 1024
"""Of all inputs and outputs together."""


def check(path: Path) -> dict[str, object]:
    """The verdict on one file."""
    from splitmesh.model.load import load_file  # imported here: inside the limits
    from splitmesh.model.shapes import runtime_inputs

    try:
        model = load_file(path)
        inputs, outputs = [one.name for one in runtime_inputs(model)], [one.name for one in model.graph.output]
    except MeshError as error:
        return {"ok": False, "reason": error.reason.value, "message": error.message}
    except MemoryError:
        return {"ok": False, "reason": Reason.MODEL_TOO_LARGE.value, "message": "reading it takes too much memory"}
    if sum(map(len, inputs + outputs)) > MAX_NAMES_CHARS:
        message = f"the names of its inputs and outputs have more than {MAX_NAMES_CHARS} characters"
        return {"ok": False, "reason": Reason.MODEL_TOO_LARGE.value, "message": message}
    return {"ok": True, "inputs": inputs, "outputs": outputs}


def limit(memory_bytes: int, cpu_s: int) -> None:
    """For this process, for good. It writes no files and leaves no core."""
    for what, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(what, (value, value))


if __name__ == "__main__":
    limit(int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(check(Path(sys.argv[1]))))
