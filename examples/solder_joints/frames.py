"""The frames of the demo, with their truth: rendered here, or real ones read from a folder. Knows no mesh."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.solder_joints import real_data
from examples.solder_joints.render import LABELS, dataset, to_jpeg
from splitmesh.model.preprocess import Preprocess

CALIBRATION_SEED = 1001
FRAMES_SEED = 1002
"""Apart from the seeds that training, validation and test use."""

Progress = Callable[[int], None]


@dataclass(frozen=True)
class DemoFrames:
    """Encoded pictures with their classes, and the calibration pictures."""

    source: str
    """In words, for the report."""
    frames: list[bytes]
    """JPEG."""
    targets: NDArray[np.int64]
    """Class of each frame; 0 is a good joint."""
    calibration: NDArray[np.uint8]
    """``[n, height, width, channels]``."""


def rendered_frames(frames: int, calibration: int, preprocess: Preprocess, on_progress: Progress) -> DemoFrames:
    """Pictures of the project's own renderer, all sites mixed."""
    pixels = []
    for number, picture in enumerate(dataset(calibration, CALIBRATION_SEED)):
        pixels.append(preprocess.pixels(to_jpeg(picture.image)))
        on_progress(number + 1)
    pictures, targets = [], []
    for number, picture in enumerate(dataset(frames, FRAMES_SEED)):
        pictures.append(to_jpeg(picture.image))
        targets.append(LABELS.index(picture.label))
        on_progress(calibration + number + 1)
    return DemoFrames("rendered solder joints", pictures, np.array(targets), np.stack(pixels))


def real_frames(root: Path, preprocess: Preprocess) -> DemoFrames:
    """Real pictures: calibrated on the validation split, streamed from the test split (units never mix)."""
    joints = real_data.load(root)
    calibration = [preprocess.pixels(joint.image.read_bytes()) for joint in joints if joint.split == "val"]
    test = [joint for joint in joints if joint.split == "test"]
    return DemoFrames(
        "real solder joints, test split",
        [joint.image.read_bytes() for joint in test],
        np.array([real_data.QUALITIES.index(joint.quality) for joint in test]),
        np.stack(calibration),
    )
