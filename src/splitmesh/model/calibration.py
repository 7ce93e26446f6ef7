"""The samples a model is calibrated on: the artefact ``calibration.safetensors``, packed and unpacked.

For a model that takes pictures, one tensor ``pixels``, uint8 ``[n, height, width, channels]``, already resized by
``Preprocess.pixels``: a quarter of the size of the model's input, and what a picture weighs can still be measured. For
a model that takes tensors, one tensor per input under its name. Beside them, where they are known, class numbers and
groups under reserved names. safetensors holds numbers only; nothing in it is ever executed. Where pictures come from
knows ``splitmesh.compress.load_samples``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.manifest import Manifest
from splitmesh.model.preprocess import Preprocess
from splitmesh.tensor.spec import DTYPES, Array, TensorSpec, require_finite, spec_of

PIXELS = "pixels"

LABELS = "splitmesh.labels"
"""int64 ``[samples]``: class numbers, -1 where not known. A model's input of this name is the input, not the labels."""
GROUPS = "splitmesh.groups"
"""int64 ``[samples]``: what belongs together, such as the pictures of one unit."""

MAX_CALIBRATION_BYTES = 1 << 30
"""A larger file is refused unread: about 7,000 colour pictures of 224 x 224."""

MAX_SAMPLES = 100_000


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Samples, turned into model inputs batch by batch (as float32 they would take four times the space).

    The tensors may be memory-mapped: what is asked for is read, and nothing else.
    """

    tensors: Mapping[str, Array]
    """What the file holds, each ``[samples, ...]``."""
    preprocess: Preprocess | None
    """How pixels become the input; None: the tensors are the inputs."""
    inputs: tuple[TensorSpec, ...]
    """Of the model, in its order."""
    labels: NDArray[np.int64] | None = None
    """Class numbers ``[samples]``, -1 where a sample has none; None: no sample has one. Only figures are made of them."""
    groups: NDArray[np.int64] | None = None
    """``[samples]``: samples of one group (pictures of one unit) are never divided; None: each is its own."""
    sources: tuple[Path, ...] | None = None
    """The picture files behind the pixels ``[samples]``, while they are there; never packed."""
    unreadable: int = 0
    """Pictures that were left out because they could not be read."""

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(next(iter(self.tensors.values())))

    @property
    def pictures(self) -> NDArray[np.uint8] | None:
        """The pixels ``[n, height, width, channels]``; None for a model that takes tensors."""
        return None if self.preprocess is None else self.tensors[PIXELS].astype(np.uint8, copy=False)

    def feeds(self, rows: slice | NDArray[np.int64]) -> dict[str, Array]:
        """Inputs of the model for some samples, by name."""
        if self.preprocess is None:
            return {spec.name: self.tensors[spec.name][rows] for spec in self.inputs}
        pixels = self.tensors[PIXELS][rows].astype(np.uint8, copy=False)
        return {self.inputs[0].name: self.preprocess.normalise(pixels)}

    def batches(self, batch_size: int, *, limit: int | None = None) -> Iterator[dict[str, Array]]:
        """All samples (the first ``limit`` of them) in order; a model with a fixed batch gets its own batch size.

        With a fixed batch, samples that do not fill the last one are left out.
        """
        fixed = self.fixed_batch
        size = fixed or batch_size
        end = min(self.samples, limit or self.samples)
        for start in range(0, end, size):
            stop = min(start + size, end)
            if fixed is None or stop - start == fixed:
                yield self.feeds(slice(start, stop))

    @property
    def fixed_batch(self) -> int | None:
        """The batch size written in the model; None where it varies."""
        sizes = {spec.shape[0] for spec in self.inputs if spec.shape and spec.shape[0] != -1}
        return max(sizes) if sizes else None


def pack_calibration(
    samples: NDArray[np.uint8] | Mapping[str, Array],
    *,
    labels: NDArray[np.int64] | None = None,
    groups: NDArray[np.int64] | None = None,
) -> bytes:
    """The artefact, from pixels uint8 ``[n, height, width, channels]`` or from the model's inputs by name.

    Args:
        samples: pixels, or tensors by name.
        labels: class numbers ``[n]``, -1 where not known; None: there are none.
        groups: ``[n]``, samples that belong together have the same number; None: each is its own.

    MeshError FIELD_INVALID for no samples, another shape or type, too many of them, or labels or groups beside an input
    of their reserved name.
    """
    if isinstance(samples, Mapping):
        tensors = dict(samples)
    else:
        if samples.dtype != np.uint8 or samples.ndim != 4 or samples.shape[3] not in (1, 3):
            raise field_error(
                "pixels", f"is {samples.dtype} {list(samples.shape)}, expected uint8 [n, height, width, 1 or 3]"
            )
        tensors = {PIXELS: samples}
    for name, numbers in ((LABELS, labels), (GROUPS, groups)):
        if numbers is None:
            continue
        if name in tensors:
            raise field_error(
                name, "is the name of an input of the model; such a model carries neither labels nor groups"
            )
        if numbers.dtype != np.int64 or numbers.ndim != 1:
            raise field_error(name, f"is {numbers.dtype} {list(numbers.shape)}, expected int64 [n]")
        tensors[name] = numbers
    for name, array in tensors.items():
        if array.dtype.name not in DTYPES:
            raise field_error(name, f"has dtype {array.dtype.name}; accepted: {', '.join(DTYPES)}")
    sizes = {len(array) if array.ndim else 0 for array in tensors.values()}
    if len(sizes) != 1 or not 1 <= max(sizes) <= MAX_SAMPLES:
        raise field_error("samples", f"every tensor needs the same 1..{MAX_SAMPLES} samples, got {sorted(sizes)}")
    size_bytes = sum(array.nbytes for array in tensors.values())
    if size_bytes > MAX_CALIBRATION_BYTES:
        raise field_error("samples", f"take {size_bytes} bytes; at most {MAX_CALIBRATION_BYTES} are accepted")
    return save({name: np.ascontiguousarray(array) for name, array in tensors.items()})


def unpack_calibration(data: bytes, manifest: Manifest) -> Calibration:
    """The samples in ``data``, checked against what the model takes.

    Raises MeshError PAYLOAD_CORRUPT (not a safetensors file, too large, missing or foreign tensors),
    TENSOR_SHAPE_MISMATCH or TENSOR_DTYPE_MISMATCH (not what the manifest says), TENSOR_NOT_FINITE,
    CALIBRATION_INSUFFICIENT (no sample, or fewer than the model's fixed batch).
    """
    if len(data) > MAX_CALIBRATION_BYTES:
        raise _corrupt(f"it has {len(data)} bytes; at most {MAX_CALIBRATION_BYTES} are read")
    try:
        tensors: dict[str, Array] = dict(load(data))
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, ImportError) as error:
        raise _corrupt("it is not a safetensors file of known types") from error
    inputs = tuple(info.spec() for info in manifest.whole.inputs)
    expected = {PIXELS} if manifest.preprocess is not None else {spec.name for spec in inputs}
    labels, groups = (
        _numbers(name, tensors.pop(name)) if name in tensors and name not in expected else None
        for name in (LABELS, GROUPS)
    )
    if tensors.keys() != expected or not expected:
        raise _corrupt(f"it holds {sorted(tensors)}, expected {sorted(expected)}")
    numbers = [array for array in (labels, groups) if array is not None]
    sizes = {len(array) if array.ndim else 0 for array in (*tensors.values(), *numbers)}
    if len(sizes) != 1 or max(sizes) > MAX_SAMPLES:
        raise _corrupt(f"its tensors hold {sorted(sizes)} samples; expected one number, at most {MAX_SAMPLES}")
    if max(sizes) == 0:
        raise MeshError(Reason.CALIBRATION_INSUFFICIENT, "the calibration file holds no sample")
    if labels is not None and not -1 <= labels.min() <= labels.max() < len(manifest.labels):
        raise _corrupt(f"a class number is none of the model's {len(manifest.labels)} classes")
    if manifest.preprocess is not None:
        _require_pixels(tensors[PIXELS], manifest.preprocess, inputs)
    else:
        for spec in inputs:
            array = tensors[spec.name]
            TensorSpec(spec.name, spec.dtype, (-1, *spec.shape[1:])).require_match(spec_of(spec.name, array))
            require_finite(spec.name, array)
    found = Calibration(tensors, manifest.preprocess, inputs, known_labels(labels), groups)
    require_batch(found)
    return found


def known_labels(labels: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """The same, or None when no sample has a class."""
    return None if labels is None or (labels < 0).all() else labels


def require_batch(samples: Calibration) -> None:
    """MeshError CALIBRATION_INSUFFICIENT for fewer samples than the batch that is written in the model."""
    if samples.fixed_batch is not None and samples.samples < samples.fixed_batch:
        raise MeshError(
            Reason.CALIBRATION_INSUFFICIENT,
            f"{samples.samples} samples do not fill the model's fixed batch of {samples.fixed_batch}",
        )


def _numbers(name: str, array: Array) -> NDArray[np.int64]:
    if array.dtype != np.int64 or array.ndim != 1:
        raise _corrupt(f"{name} is {array.dtype} {list(array.shape)}, expected int64 [n]")
    return array.astype(np.int64, copy=False)


def _require_pixels(pixels: Array, preprocess: Preprocess, inputs: tuple[TensorSpec, ...]) -> None:
    if len(inputs) != 1:
        raise MeshError(Reason.MODEL_INCOMPLETE, f"pictures feed one input, the model has {len(inputs)}")
    shape = (-1, preprocess.height, preprocess.width, preprocess.channels)
    TensorSpec(PIXELS, "uint8", shape).require_match(spec_of(PIXELS, pixels))


def _corrupt(detail: str) -> MeshError:
    return MeshError(Reason.PAYLOAD_CORRUPT, f"the calibration file is refused: {detail}")
