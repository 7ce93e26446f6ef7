"""Rendered AOI pictures of through-hole solder joints, with a known label and a known severity.

``severity`` is the signed distance from the acceptance limit: below 0 the joint is good, -1 is perfect, just above 0 a
defect is borderline, 1 is gross. Shapes follow it continuously, so some pictures are hard for people too. Everything
follows from the generator that is passed in. Knows nothing of models.

    python -m examples.solder_joints.render --out /tmp/joints --n 200 --seed 1
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from examples.solder_joints.optics import SITES, Site, blur, expose, shade
from examples.solder_joints.surface import PADS, Joint, Plane, Surface, smooth_noise

LABELS: tuple[str, ...] = ("ok", "insufficient", "excess", "bridge", "missing", "shifted")
"""Class names in class order; everything but ``ok`` is a defect."""

PROPORTIONS: dict[str, float] = {
    "ok": 0.5,
    "insufficient": 0.14,
    "excess": 0.1,
    "bridge": 0.08,
    "missing": 0.08,
    "shifted": 0.1,
}
"""Share of each class that :func:`dataset` draws; sums to 1."""

PIXELS_PER_UNIT = 27.0
"""Pixels in a pad unit (half a round pad) at magnification 1."""
_SILK_WORDS = ("C12", "R7", "J3", "Q21", "D4", "U1", "TP8", "L2", "+5V", "GND")


@dataclass(frozen=True)
class JointPicture:
    """One rendered picture and its truth."""

    image: Image.Image
    """Mode ``L``, about 240x200 pixels, the joint in the middle."""
    label: str
    """One of LABELS."""
    site: str
    """The station it was taken at, a key of SITES."""
    severity: float
    """Signed distance from the acceptance limit, -1..1; negative exactly for ``ok``."""


def render(label: str, site: str, rng: np.random.Generator) -> JointPicture:
    """One picture of a joint with this label, as this site's camera sees it.

    Raises ValueError for an unknown label or site.
    """
    if label not in LABELS:
        raise ValueError(f"unknown label {label!r}; known: {', '.join(LABELS)}")
    if site not in SITES:
        raise ValueError(f"unknown site {site!r}; known: {', '.join(SITES)}")
    station = SITES[site]
    severity, kind = _severity(label, rng)
    surface = _board(station, rng)
    pad = str(rng.choice(tuple(PADS), p=(0.45, 0.35, 0.2)))
    pitch = rng.uniform(2.35, 2.9)
    beside = 1 if rng.random() < 0.5 else -1
    _neighbours(surface, pad, pitch, beside, rng)
    surface.add_joint(_joint(kind, severity, pad, rng))
    if kind == "bridge":
        _bridge(surface, severity, pitch * beside, rng)
    surface.height = blur(surface.height, 0.8)
    light = shade(
        surface.height * np.float32(surface.pixels_per_unit),
        surface.specular,
        surface.diffuse,
        station,
        rng.uniform(0, 2 * np.pi),
    )
    grey = expose(light, station, rng, gain=rng.uniform(0.88, 1.12))
    return JointPicture(Image.fromarray(grey.astype(np.uint8)), label, site, severity)


def dataset(n: int, seed: int, sites: Sequence[str] = tuple(SITES)) -> Iterator[JointPicture]:
    """``n`` pictures with classes drawn by PROPORTIONS and sites drawn evenly.

    Picture ``i`` depends on ``seed`` and ``i`` only, so a longer set starts with the shorter one.
    """
    for index in range(n):
        rng = np.random.default_rng((seed, index))
        label = str(rng.choice(LABELS, p=[PROPORTIONS[name] for name in LABELS]))
        yield render(label, str(rng.choice(list(sites))), rng)


def to_jpeg(image: Image.Image, quality: int = 90) -> bytes:
    """The picture as a camera gateway would send it."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def _severity(label: str, rng: np.random.Generator) -> tuple[float, str]:
    """How far from the limit, and in which way: a good joint leans towards one of the defects, most of them little."""
    if label == "ok":
        return -float(1 - 0.95 * rng.beta(1.1, 3.3)), str(rng.choice(LABELS[1:]))
    return float(0.08 + 0.92 * rng.beta(1.7, 1.2)), label


def _joint(kind: str, severity: float, pad: str, rng: np.random.Generator) -> Joint:
    """The centre joint: ``kind`` says which quantity leaves its range as ``severity`` passes 0, the others scatter."""
    centre_x, centre_y = rng.normal(0, 0.08, 2)
    bare = abs(rng.normal(0, 0.035))
    bulge, overflow = rng.uniform(0, 0.18), rng.uniform(0, 0.03)
    lopsided, protrusion, hole = rng.uniform(0, 1), rng.uniform(0.2, 0.4), 0.0
    offset, angle, rise = abs(rng.normal(0, 0.05)), rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 0.9)
    above = max(0.0, severity)
    if kind == "insufficient":
        bare = _between(severity, 0.0, 0.22, 0.55)
    elif kind == "excess":
        bulge = _between(severity, 0.1, 0.5, 1.0)
        overflow = _between(severity, 0.0, 0.06, 0.3)
        protrusion *= 1 - min(1.0, 1.5 * above)
    elif kind == "missing":
        protrusion = _between(severity, 0.35, 0.08, 0.0)
        hole = min(1.0, 0.4 + 1.2 * above) if severity > 0 else 0.0
        rise *= 1 - 0.7 * above
    elif kind == "shifted":
        offset = _between(severity, 0.0, 0.3, 0.62)
    return Joint(
        x=float(centre_x),
        y=float(centre_y),
        pad=pad,
        bare=bare,
        lopsided=lopsided,
        bulge=bulge,
        overflow=overflow,
        shift=(float(offset * np.cos(angle)), float(offset * np.sin(angle))),
        rise=rise,
        protrusion=protrusion,
        hole=hole,
    )


def _between(severity: float, perfect: float, limit: float, gross: float) -> float:
    """Piecewise linear: ``perfect`` at -1, ``limit`` at 0, ``gross`` at 1."""
    return float(np.interp(severity, (-1.0, 0.0, 1.0), (perfect, limit, gross)))


def _bridge(surface: Surface, severity: float, to_y: float, rng: np.random.Generator) -> None:
    """Solder towards the neighbour: it joins exactly when ``severity`` is above 0."""
    neck = 0.07 + 0.42 * severity if severity > 0 else 0.45 * severity - 0.04
    lean = rng.uniform(-0.35, 0.35, 2)
    surface.add_bridge((float(lean[0]), 0.0), (float(lean[1]), to_y), neck)


def _neighbours(surface: Surface, pad: str, pitch: float, beside: int, rng: np.random.Generator) -> None:
    """The joints above and below (one is always there, so that a bridge has somewhere to go) and a test pad."""
    sides = (beside,) if rng.random() < 0.4 else (beside, -beside)
    for side in sides:
        # Neighbours may be bad themselves: only the middle joint decides the label.
        bad = rng.random() < 0.12
        kind = str(rng.choice(("insufficient", "missing", "shifted", "excess")))
        other = "bar" if pad == "bar" else str(rng.choice(("round", "square")))
        joint = _joint(kind, rng.uniform(0.1, 0.9) if bad else rng.uniform(-1, -0.6), other, rng)
        surface.add_joint(replace(joint, y=joint.y + side * pitch))
    if rng.random() < 0.6:
        x, y = float(rng.choice((-1, 1)) * rng.uniform(2.4, 3.2)), float(rng.uniform(-0.4, 0.4))
        surface.add_test_pad(x, y, rng.uniform(0.4, 0.55))


def _board(site: Site, rng: np.random.Generator) -> Surface:
    """An empty board: mask with stains, traces, vias, silk-screen text and marks, perhaps the carrier's edge."""
    width, height = int(rng.integers(226, 256)), int(rng.integers(188, 214))
    unit = PIXELS_PER_UNIT * site.scale * rng.uniform(0.95, 1.05)
    turn = np.deg2rad(site.rotation_deg + rng.normal(0, 1.5))
    across = (np.arange(width, dtype=np.float32) - width / 2) / np.float32(unit)
    down = ((np.arange(height, dtype=np.float32) - height / 2) / np.float32(unit))[:, None]
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    surface = Surface(
        (across * cos + down * sin).astype(np.float32),
        (down * cos - across * sin).astype(np.float32),
        unit,
        rng,
        site.mask_diffuse,
    )
    surface.height += np.float32(0.004 + 0.02 * site.texture) * smooth_noise(rng, (height, width), 14)
    surface.diffuse *= 1 + np.float32(0.5 * site.texture) * smooth_noise(rng, (height, width), 22)
    np.maximum(surface.diffuse, 0.01, out=surface.diffuse)
    for _ in range(int(rng.integers(1, 4))):
        slant = float(rng.choice((0.0, 0.0, 0.3, -0.3)))
        surface.add_trace(float(rng.uniform(-4.5, 4.5)), slant, float(rng.uniform(0.2, 0.5)))
    for _ in range(int(rng.integers(0, 4))):
        x, y = float(rng.choice((-1, 1)) * rng.uniform(1.9, 4.8)), float(rng.uniform(-4, 4))
        surface.add_test_pad(x, y, 0.2, hole=0.11)
    silk = _silk(width, height, unit, rng)
    surface.paint(silk, specular=0.02, diffuse=0.22 + site.mask_diffuse)
    return surface


def _silk(width: int, height: int, unit: float, rng: np.random.Generator) -> Plane:
    """Printed marks, ``[height, width]`` 0..1, none over the middle joint; sometimes a bright strip at the border."""
    picture = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default_imagefont()
    for _ in range(int(rng.integers(1, 4))):
        word = str(rng.choice(_SILK_WORDS))
        side = -1 if rng.random() < 0.5 else 1
        x = width / 2 + side * rng.uniform(2.2, 3.6) * unit - 8
        draw.text((x, rng.uniform(5, height - 16)), word, fill=int(rng.integers(90, 220)), font=font)
    if rng.random() < 0.4:
        x, y = width / 2 + float(rng.choice((-1, 1))) * 3.4 * unit, rng.uniform(0, height)
        draw.ellipse((x - 16, y - 18, x + 16, y + 18), outline=int(rng.integers(60, 160)), width=2)
    if rng.random() < 0.25:
        draw.rectangle((0, rng.uniform(0, height / 2), rng.uniform(2, 7), rng.uniform(height / 2, height)), fill=255)
    return np.asarray(picture, dtype=np.float32) / np.float32(255)


def main(argv: Sequence[str] | None = None) -> None:
    """Write ``OUT/<label>/<index>_<site>.jpg`` and ``OUT/labels.csv`` (image, label, site, severity)."""
    parser = argparse.ArgumentParser(description="Render solder-joint pictures into a folder per class.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, made when absent")
    parser.add_argument("--n", type=int, default=200, help="number of pictures")
    parser.add_argument("--seed", type=int, default=1, help="pictures follow from it")
    parser.add_argument("--sites", nargs="+", choices=tuple(SITES), default=list(SITES), help="stations to draw from")
    arguments = parser.parse_args(argv)
    for label in LABELS:
        (arguments.out / label).mkdir(parents=True, exist_ok=True)
    with (arguments.out / "labels.csv").open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table)
        writer.writerow(("image", "label", "site", "severity"))
        for index, picture in enumerate(dataset(arguments.n, arguments.seed, arguments.sites)):
            name = f"{picture.label}/{index:05d}_{picture.site}.jpg"
            (arguments.out / name).write_bytes(to_jpeg(picture.image))
            writer.writerow((name, picture.label, picture.site, f"{picture.severity:.4f}"))
    print(f"{arguments.n} pictures in {arguments.out}")


if __name__ == "__main__":
    main()
