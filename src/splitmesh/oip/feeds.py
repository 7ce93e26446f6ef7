"""A call's inputs as a model takes them: held against its manifest, pictures prepared as its version says."""

from __future__ import annotations

import numpy as np

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.manifest import Manifest
from splitmesh.oip.describe import takes_pictures
from splitmesh.oip.request import BytesInput, Call, TensorInput
from splitmesh.tensor.spec import Array, Buffer, TensorLimits, from_bytes, require_finite

PICTURE = "image"
"""Name under which any model with one input takes pictures, beside that of the input."""


def pictures_of(call: Call, manifest: Manifest, model: str) -> tuple[Buffer, ...]:
    """The encoded pictures, one for each sample; empty for a call with tensors. FIELD_INVALID where the model takes none."""
    texts = [one for one in call.inputs if isinstance(one, BytesInput)]
    if not texts:
        return ()
    if not takes_pictures(manifest):
        raise field_error("inputs", f"{model!r} takes no encoded pictures: {texts[0].name!r} must be a tensor")
    name = manifest.whole.inputs[0].name
    if len(call.inputs) != 1 or texts[0].name not in (name, PICTURE):
        raise field_error("inputs", f"{model!r} takes one input, named {name!r}")
    return texts[0].elements


def tensors_of(call: Call) -> tuple[TensorInput, ...]:
    """The inputs of a call without pictures."""
    return tuple(one for one in call.inputs if isinstance(one, TensorInput))


def feeds_of(call: Call, manifest: Manifest, model: str, *, max_pixels: int, limits: TensorLimits) -> dict[str, Array]:
    """The model's inputs by name, each ``[n, ...]``. Blocking.

    Raises MeshError FIELD_INVALID, TENSOR_*, IMAGE_UNDECODABLE or IMAGE_TOO_LARGE.
    """
    if pictures := pictures_of(call, manifest, model):
        if manifest.preprocess is None:
            raise AssertionError("a model without preprocessing takes no pictures")
        pixels = [manifest.preprocess.pixels(picture, max_pixels=max_pixels) for picture in pictures]
        return {manifest.whole.inputs[0].name: manifest.preprocess.normalise(np.stack(pixels))}
    expected = {info.name: info.spec() for info in manifest.whole.inputs}
    feeds: dict[str, Array] = {}
    for tensor in tensors_of(call):
        name = tensor.spec.name
        if name not in expected:
            raise field_error("inputs", f"{model!r} has no input {name!r}; it has {', '.join(expected)}")
        if name in feeds:
            raise field_error("inputs", f"input {name!r} is given twice")
        expected[name].require_match(tensor.spec)
        feeds[name] = from_bytes(tensor.spec, tensor.data, limits)
        require_finite(name, feeds[name])
    if missing := [name for name in expected if name not in feeds]:
        raise field_error("inputs", f"input {', '.join(map(repr, missing))} of {model!r} is missing")
    return feeds


def sample_bytes(manifest: Manifest, call: Call) -> int:
    """Of one sample as the model takes it."""
    if tensors := tensors_of(call):
        return sum(len(one.data) for one in tensors) // call.samples
    prepared = manifest.preprocess
    if prepared is None:
        raise MeshError(Reason.FIELD_INVALID, "pictures need a version with preprocessing")
    return prepared.width * prepared.height * prepared.channels * 4
