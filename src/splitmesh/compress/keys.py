"""What a step was made from, as one digest: the version, the samples, the settings, the program and the steps before.

Two steps of one key are the same work, so that the result of one found on disk may stand for the other.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from splitmesh.compress.recipe import Recipe
from splitmesh.compress.work import Work
from splitmesh.model.calibration import Calibration


def step_keys(work: Work, calibration: Calibration, recipe: Recipe) -> list[str]:
    """Entry n: what step n came from and is, entry 0 what the first one starts from."""
    settings = recipe.model_dump_json(exclude={"steps"})
    files = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(work.artifacts.items())}
    keys = [digest(_code(), settings, work.manifest.to_json(), json.dumps(files), _samples_digest(calibration))]
    for step in recipe.steps:
        keys.append(digest(keys[-1], step.model_dump_json()))
    return keys


def _samples_digest(calibration: Calibration) -> str:
    summed = hashlib.sha256()
    arrays = {**calibration.tensors, "labels of": calibration.labels, "groups of": calibration.groups}
    for name in sorted(arrays):
        array = arrays[name]
        if array is not None:
            summed.update(f"{name} {array.dtype} {array.shape}".encode())
            # A thousand rows at a time: the samples may lie in a file larger than memory.
            for row in range(0, len(array), 1000):
                summed.update(np.ascontiguousarray(array[row : row + 1000]).data)
    return summed.hexdigest()


def digest(*parts: str) -> str:
    """Of all texts together, each with its own bounds."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _code() -> str:
    """Of this program: steps that another version of it finished are done again."""
    try:
        return version("splitmesh")
    except PackageNotFoundError:
        return "checkout"
