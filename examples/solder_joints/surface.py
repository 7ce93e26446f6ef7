"""The shape of a soldered board seen from above: heights and reflectances of pads, fillets, pins and bridges.

Lengths are in *pad units*: 1 is half the width of a round pad. Knows geometry and materials; knows nothing of light,
cameras, sites or labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Plane = NDArray[np.float32]
"""float32 ``[height, width]``: one value per pixel."""


@dataclass(frozen=True)
class Box:
    """A rounded rectangle around the origin; with ``corner == half_x == half_y`` it is a disc. Pad units."""

    half_x: float
    half_y: float
    corner: float

    def distance(self, x: Plane, y: Plane) -> Plane:
        """Signed distance to the outline: negative inside, exact outside and along the sides."""
        qx = np.abs(x) - np.float32(self.half_x - self.corner)
        qy = np.abs(y) - np.float32(self.half_y - self.corner)
        outside = np.sqrt(np.maximum(qx, 0) ** 2 + np.maximum(qy, 0) ** 2)
        inside: Plane = outside + np.minimum(np.maximum(qx, qy), 0) - np.float32(self.corner)
        return inside

    def dome(self, x: Plane, y: Plane, overflow: float) -> Plane:
        """Height 0..1 of a drop that covers the box and ``overflow`` around it: smooth, 1 in the middle."""
        u = np.minimum((x / np.float32(self.half_x + overflow)) ** 2, 1)
        v = np.minimum((y / np.float32(self.half_y + overflow)) ** 2, 1)
        left = 1 - u - v if self.corner == self.half_x else (1 - u) * (1 - v)
        drop: Plane = np.sqrt(np.maximum(left, 0))
        return drop


PADS = {"round": Box(1.0, 1.0, 1.0), "square": Box(0.95, 0.95, 0.1), "bar": Box(1.75, 0.95, 0.12)}
"""Pad outlines by name."""

PINS = {"round": Box(0.3, 0.3, 0.3), "square": Box(0.28, 0.28, 0.12), "bar": Box(0.85, 0.22, 0.2)}
"""The lead that belongs to each pad."""


@dataclass(frozen=True)
class Joint:
    """One through-hole joint, lengths in pad units. Every number is continuous, so borderline joints exist."""

    x: float
    """Centre of the pad, to the right."""
    y: float
    """Centre of the pad, downwards."""
    pad: str = "round"
    """A key of PADS."""
    bare: float = 0.0
    """Mean width of the pad's rim that the solder has not wetted."""
    lopsided: float = 0.0
    """How much ``bare`` differs around the pad: 0 even, 1 all on one side."""
    bulge: float = 0.0
    """0 a concave fillet that shows the pin, 1 a dome that buries it."""
    overflow: float = 0.0
    """How far solder may stand over the pad's edge."""
    shift: tuple[float, float] = (0.0, 0.0)
    """Offset of pin and fillet from the pad's centre."""
    rise: float = 0.7
    """Height of the solder at the pin when the pad is wetted to its edge."""
    protrusion: float = 0.3
    """How far the pin stands out of the solder."""
    hole: float = 0.0
    """0 pin present; above 0 no pin, and this is how open (dark) the hole is, up to 1."""


@dataclass
class Surface:
    """The board under the camera, changed in place by the ``add_*`` methods (later additions lie on top)."""

    x: Plane
    """Coordinate of each pixel, pad units to the right."""
    y: Plane
    """Coordinate of each pixel, pad units downwards."""
    pixels_per_unit: float
    """Pixels in one pad unit."""
    rng: np.random.Generator
    """Source of roughness and wobble."""
    mask_diffuse: float = 0.08
    """Diffuse reflectance of the solder mask, 0..1."""
    height: Plane = field(init=False)
    """Height in pad units."""
    specular: Plane = field(init=False)
    """Mirror-like reflectance, 0..1."""
    diffuse: Plane = field(init=False)
    """Matte reflectance, 0..1."""
    _ripple: Plane = field(init=False)

    def __post_init__(self) -> None:
        self.height = np.zeros_like(self.x)
        self.specular = np.full_like(self.x, 0.09)
        self.diffuse = np.full_like(self.x, self.mask_diffuse)
        self._ripple = smooth_noise(self.rng, self.x.shape, 9)

    def cover(self, distance: Plane) -> Plane:
        """Share of each pixel inside an outline, from its signed distance: antialiased 0..1."""
        covered: Plane = np.clip(np.float32(0.5) - distance * np.float32(self.pixels_per_unit), 0, 1)
        return covered

    def paint(self, where: Plane, *, specular: float, diffuse: float) -> None:
        """Give a material to the pixels in ``where`` (0..1)."""
        self.specular += where * (np.float32(specular) - self.specular)
        self.diffuse += where * (np.float32(diffuse) - self.diffuse)

    def add_trace(self, x: float, slant: float, width: float) -> None:
        """Copper under the mask, right across the picture: only its rounded shoulders show.

        It runs through ``(x, 0)`` and moves ``slant`` to the right per unit down.
        """
        norm = np.float32(1 / np.hypot(1, slant))
        distance = np.abs(self.x - np.float32(slant) * self.y - np.float32(x)) * norm - np.float32(width / 2)
        self.height += np.float32(0.06) * np.clip(np.float32(0.5) - distance / np.float32(0.12), 0, 1)

    def add_test_pad(self, x: float, y: float, radius: float, *, hole: float = 0.0) -> None:
        """A flat tinned disc without solder; with ``hole`` (its radius, pad units) a via."""
        r = np.sqrt((self.x - np.float32(x)) ** 2 + (self.y - np.float32(y)) ** 2)
        disc = self.cover(r - np.float32(radius))
        self.height += np.float32(0.03) * disc
        self.paint(disc, specular=0.95, diffuse=0.25)
        if hole:
            self.paint(self.cover(r - np.float32(hole)), specular=0.0, diffuse=0.01)

    def add_joint(self, joint: Joint) -> None:
        """Pad, fillet and pin (or open hole)."""
        rows, columns = self._window(joint)
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        part = (rows, columns)
        x, y = self.x[part] - np.float32(joint.x), self.y[part] - np.float32(joint.y)
        pad, pin = PADS[joint.pad], PINS[joint.pad]
        wobble = self._ripple[part]
        pad_distance = pad.distance(x, y)
        height, specular, diffuse = self.height[part], self.specular[part], self.diffuse[part]

        metal = self.cover(pad_distance)
        np.maximum(height, np.float32(0.05) * metal + np.float32(0.012) * wobble * metal, out=height)
        specular += metal * (np.float32(0.9) - specular)
        diffuse += metal * (np.float32(0.28) - diffuse)

        sx, sy = x - np.float32(joint.shift[0]), y - np.float32(joint.shift[1])
        azimuth_phase = self.rng.uniform(0, 2 * np.pi)
        side = (sx * np.float32(np.cos(azimuth_phase)) + sy * np.float32(np.sin(azimuth_phase))) / np.float32(0.8)
        uneven = np.clip(1 + np.float32(joint.lopsided) * np.clip(side * 1.6, -1, 1), 0, 2)
        foot = pad.distance(sx, sy) + np.float32(joint.bare) * uneven - np.float32(joint.overflow)
        foot = np.maximum(foot, pad_distance - np.float32(joint.overflow)) + np.float32(0.035) * wobble
        run = (1 - joint.bulge) * max(0.3, 0.98 - pin.half_y - 0.6 * joint.bare) + joint.bulge * (1 + joint.overflow)
        t = np.clip(-foot / np.float32(run), 0, 1)
        fillet = (1 - joint.bulge) * (0.45 * t + 0.55 * t * t) + joint.bulge * pad.dome(sx, sy, joint.overflow)
        tall = joint.rise * (1 + joint.bulge) * (1 - 0.6 * min(1.0, joint.bare))
        fillet = np.float32(tall) * fillet.astype(np.float32) * (1 + np.float32(0.05) * wobble)
        solder = self.cover(foot)
        np.maximum(height, fillet * solder + height * (1 - solder), out=height)
        specular += solder * (np.float32(1.0) - specular)
        diffuse += solder * (np.float32(0.03) - diffuse)

        pin_distance = pin.distance(sx, sy)
        inside = self.cover(pin_distance)
        if joint.hole > 0:
            # The plated hole is wider than the lead. Without a lead the solder sinks to a flat lip around it.
            hole = pin_distance - np.float32(0.16 * joint.hole)
            lip = self.cover(hole - np.float32(0.05 + 0.15 * joint.hole))
            np.minimum(height, np.float32(0.5 * tall) + (1 - lip) * np.float32(9), out=height)
            depth = self.cover(hole) * np.float32(joint.hole)
            height -= np.float32(0.5) * depth * np.clip(-hole / np.float32(pin.half_y), 0, 1)
            specular *= 1 - depth * np.float32(0.97)
            diffuse *= 1 - depth * np.float32(0.9)
            return
        tilt = self.rng.normal(0, 0.12, 2)
        crown = np.float32(0.4) * (sx * sx + sy * sy) if joint.pad != "bar" else np.float32(1.5) * sy * sy
        top = np.float32(tall * 0.92 + joint.protrusion) - crown + sx * np.float32(tilt[0]) + sy * np.float32(tilt[1])
        proud = inside * (top > height)
        height += proud * (top - height)
        diffuse += proud * (np.float32(0.1) - diffuse)
        specular += proud * (np.float32(0.75) - specular)

    def add_bridge(self, start: tuple[float, float], end: tuple[float, float], neck: float, flare: float = 0.3) -> None:
        """Solder between two joints: half-width ``neck`` in the middle, ``neck + flare`` at the ends, centre to centre.

        A ``neck`` below 0 leaves a gap: two spurs that point at each other.
        """
        distance, along = _segment(self.x, self.y, start, end)
        width = np.float32(neck) + np.float32(flare) * (2 * along - 1) ** 2 + np.float32(0.04) * self._ripple
        ratio = np.clip(distance / np.maximum(width, np.float32(1e-3)), 0, 1)
        rope = np.sqrt(1 - ratio * ratio) * np.minimum(width, np.float32(0.6)) * np.float32(1.4)
        there = self.cover(distance - width) * (width > 0)
        np.maximum(self.height, rope * there, out=self.height)
        self.paint(there * (rope >= self.height - np.float32(0.02)), specular=1.0, diffuse=0.03)

    def _window(self, joint: Joint) -> tuple[slice, slice]:
        """The pixels a joint can touch: rotation is small, so a margin on the unrotated box is enough."""
        height, width = self.x.shape
        pad = PADS[joint.pad]
        reach_x, reach_y = pad.half_x + 0.6, pad.half_y + 0.9
        # The coordinate planes are affine, so one pixel's position follows from the plane's corner and steps.
        step_x, step_y = self.x[0, 1] - self.x[0, 0], self.y[1, 0] - self.y[0, 0]
        shear_x, shear_y = self.x[1, 0] - self.x[0, 0], self.y[0, 1] - self.y[0, 0]
        determinant = step_x * step_y - shear_x * shear_y
        dx, dy = joint.x - self.x[0, 0], joint.y - self.y[0, 0]
        column, row = (dx * step_y - dy * shear_x) / determinant, (dy * step_x - dx * shear_y) / determinant
        half_w, half_h = reach_x * self.pixels_per_unit, reach_y * self.pixels_per_unit
        rows = slice(max(0, int(row - half_h)), max(0, min(height, int(row + half_h) + 1)))
        return rows, slice(max(0, int(column - half_w)), max(0, min(width, int(column + half_w) + 1)))


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], cell: int) -> Plane:
    """Random relief without detail finer than ``cell`` pixels: ``[height, width]``, standard deviation about 1."""
    height, width = shape
    coarse = rng.standard_normal((height // cell + 2, width // cell + 2), dtype=np.float32)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture, dtype=np.float32) * np.float32(1.3)


def _segment(x: Plane, y: Plane, start: tuple[float, float], end: tuple[float, float]) -> tuple[Plane, Plane]:
    """Distance to a line segment, and the position of the nearest point along it (0 at start, 1 at end)."""
    ax, ay = np.float32(start[0]), np.float32(start[1])
    bx, by = np.float32(end[0] - start[0]), np.float32(end[1] - start[1])
    along: Plane = np.clip(((x - ax) * bx + (y - ay) * by) / (bx * bx + by * by + np.float32(1e-9)), 0, 1)
    distance: Plane = np.sqrt((x - ax - along * bx) ** 2 + (y - ay - along * by) ** 2)
    return distance, along
