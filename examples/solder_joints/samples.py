"""Labelled pictures in memory: uint8 pixels through :class:`Preprocess`, from the renderer or from a real folder.

Knows both sources of pictures; knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from examples.solder_joints.real_data import QUALITIES, Joint
from examples.solder_joints.render import LABELS, dataset, to_jpeg
from splitmesh.model.preprocess import Preprocess

Tick = Callable[[], None]
"""Called once per picture, for a progress bar."""


@dataclass(frozen=True)
class Samples:
    """One split."""

    pixels: NDArray[np.uint8]
    """``[n, height, width, channels]``."""
    targets: NDArray[np.int64]
    """``[n]`` class numbers; 0 is ``ok``."""

    def __len__(self) -> int:
        return len(self.targets)


def rendered(n: int, seed: int, preprocess: Preprocess, tick: Tick) -> Samples:
    """``n`` rendered pictures, through JPEG as at a gateway; classes are ``render.LABELS``."""
    pixels, targets = [], []
    for picture in dataset(n, seed):
        pixels.append(preprocess.pixels(to_jpeg(picture.image)))
        targets.append(LABELS.index(picture.label))
        tick()
    return Samples(np.stack(pixels), np.array(targets, dtype=np.int64))


def real(joints: Sequence[Joint], preprocess: Preprocess, tick: Tick) -> Samples:
    """The pictures of these rows; classes are ``real_data.QUALITIES``."""
    pixels = []
    for joint in joints:
        pixels.append(preprocess.pixels(joint.image.read_bytes()))
        tick()
    return Samples(np.stack(pixels), np.array([QUALITIES.index(j.quality) for j in joints], dtype=np.int64))


def scaled(preprocess: Preprocess, samples: Samples) -> Preprocess:
    """The same preprocessing with mean and std of these pixels (the training split's), 0..1 scale, 4 digits."""
    values = samples.pixels.astype(np.float32) / 255
    mean, std = round(float(values.mean()), 4), round(float(values.std()), 4)
    return preprocess.model_copy(update={"mean": (mean,), "std": (std,)})
