"""From a surface to what an AOI camera records: ring lights, specular and matte shading, blur, vignetting, noise.

The camera looks straight down, so a mirror-like patch that is tilted by an angle shows the light that stands at twice
that angle from the axis: flat metal shows the coaxial light, a steep fillet shows a low ring or nothing. Knows nothing
of joints or labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from examples.solder_joints.surface import Plane


@dataclass(frozen=True)
class Light:
    """One ring of lamps around the camera; elevation 90 is the coaxial light."""

    elevation_deg: float
    """Height above the board's horizon, 0..90."""
    intensity: float
    """Relative brightness; 1 saturates flat metal in most cameras."""
    spread_deg: float = 14.0
    """Half-width of the highlight that the ring makes, in degrees of view."""
    uneven: float = 0.0
    """0 an even ring, 1 dark on one side."""


@dataclass(frozen=True)
class Site:
    """One factory's station: its light, its camera and its boards."""

    name: str
    lights: tuple[Light, ...]
    gain: float
    """Camera gain; 1 maps reflectance 1 under intensity 1 to full scale."""
    blur_px: float
    """Standard deviation of the lens's point spread, pixels."""
    noise: float
    """Standard deviation of the read noise, grey levels of 255; shot noise is added to it."""
    scale: float
    """Magnification; 1 draws a pad unit as 27 pixels."""
    rotation_deg: float
    """How far the camera is turned against the board."""
    mask_diffuse: float
    """Brightness of the solder mask, 0..1."""
    texture: float
    """Strength of stains and weave on the board, 0..1."""
    vignette: float
    """Loss of light in the picture's corners, 0..1."""
    black_level: float = 3.0
    """Grey level of a dark pixel."""


SITES: dict[str, Site] = {
    site.name: site
    for site in (
        Site("A", (Light(90, 1.0), Light(55, 0.25)), 1.0, 0.7, 1.5, 1.00, 0.0, 0.05, 0.15, 0.10),
        Site("B", (Light(90, 0.8), Light(60, 0.45, 10), Light(30, 0.2)), 1.05, 1.0, 2.5, 1.08, 2.0, 0.10, 0.30, 0.20),
        Site("C", (Light(90, 0.45, 18), Light(40, 0.8, 12, 0.3)), 1.1, 0.8, 2.0, 0.94, -4.0, 0.07, 0.20, 0.15),
        Site("D", (Light(90, 0.65, 16, 0.2), Light(25, 0.35)), 0.95, 1.4, 4.5, 0.88, 3.0, 0.15, 0.35, 0.35, 8.0),
    )
}
"""The stations by name: A the reference, B brighter and softer, C side-lit and turned, D dim, noisy and stained."""


def shade(height: Plane, specular: Plane, diffuse: Plane, site: Site, phase: float) -> Plane:
    """Light that reaches the camera, ``[height, width]``, 1 is full scale before gain.

    ``height`` is in pixels (so that slopes are true), the reflectances are 0..1; ``phase`` turns the uneven rings,
    radians.
    """
    slope_y, slope_x = np.gradient(height)
    tilt = np.sqrt(slope_x * slope_x + slope_y * slope_y)
    view = np.float32(2 * 180 / np.pi) * np.arctan(tilt)
    cosine = 1 / np.sqrt(1 + tilt * tilt)
    direction = (slope_x * np.float32(np.cos(phase)) + slope_y * np.float32(np.sin(phase))) / (tilt + np.float32(1e-3))
    mirror = np.zeros_like(height)
    ambient = 0.0
    for light in site.lights:
        lobe = np.exp(-(((view - np.float32(90 - light.elevation_deg)) / np.float32(light.spread_deg)) ** 2))
        if light.uneven:
            lobe *= 1 + np.float32(light.uneven) * direction
        mirror += np.float32(light.intensity) * lobe
        ambient += light.intensity
    seen: Plane = specular * mirror + diffuse * cosine * np.float32(ambient)
    return seen


def expose(light: Plane, site: Site, rng: np.random.Generator, gain: float = 1.0) -> Plane:
    """What the sensor reads out: ``[height, width]`` grey levels 0..255, blurred, vignetted and noisy."""
    height, width = light.shape
    scene = blur(np.minimum(light, np.float32(1.6)), site.blur_px)
    across = np.linspace(-1, 1, width, dtype=np.float32)
    down = np.linspace(-1, 1, height, dtype=np.float32)
    falloff = 1 - np.float32(site.vignette / 2) * (across * across + (down * down)[:, None])
    signal = scene * falloff * np.float32(255 * site.gain * gain)
    # Shot noise grows with the root of the signal; 0.15 is a full well of about 11,000 electrons at 255 levels.
    spread = np.float32(site.noise) + np.float32(0.15) * np.sqrt(np.maximum(signal, 0))
    noise = rng.standard_normal(light.shape, dtype=np.float32)
    read: Plane = np.clip(signal + np.float32(site.black_level) + spread * noise, 0, 255)
    return read


def blur(plane: Plane, sigma_px: float) -> Plane:
    """Gaussian blur, ``[height, width]``, borders repeated."""
    radius = max(1, int(2.5 * sigma_px + 0.5))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / max(sigma_px, 1e-3)) ** 2).astype(np.float32)
    taps /= taps.sum()
    for axis in (0, 1):
        length = plane.shape[axis]
        padded = np.pad(plane, [(radius, radius) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        moved = padded if axis == 0 else padded.T
        total = sum(tap * moved[k : k + length] for k, tap in enumerate(taps))
        plane = np.asarray(total if axis == 0 else np.asarray(total).T, dtype=np.float32)
    return plane
