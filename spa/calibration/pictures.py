"""Pictures without a camera: occluding shapes of many sizes, coloured and shaded, over noise with a 1/f spectrum.

Natural pictures are made of objects that hide one another; "dead leaves" (Lee, Mumford, Huang: Occlusion models for
natural images, IJCV 2001) share their edges, their scale-free sizes and their spectrum, and teach and probe networks
better than noise does (Baradad et al.: Learning to see by looking at noise, NeurIPS 2021). What each ingredient is
worth to a repair is measured in docs/calibration.md.
"""

from __future__ import annotations

import numpy as np

from spa.calibration.readers import Array, Matrix

SHAPES = 40  # per picture
SLOPES = (0.7, 1.6)  # of the background's amplitude spectrum, f^-slope
CONTRAST = (0.3, 1.5)  # standard deviation of a picture: networks differ in how they scale theirs
BRIGHTNESS = 0.6  # standard deviation of a picture's mean
LIMIT = 2.1  # real pictures are bounded
# rows: luminance, yellow-blue and red-green, with the spread each has in natural pictures
OPPONENT = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]]) * [[1.67], [0.35], [0.15]]


def pictures(shape: tuple[int, int, int, int], rng: np.random.Generator) -> Matrix:
    """[N, C, H, W], of about zero mean and unit variance over all pictures; their contrasts and brightness differ."""
    n, channels, height, width = shape
    planes = np.empty((n, 3, height, width))
    for i in range(n):
        planes[i] = leaves(height, width, rng)
    if channels == 1:
        x = planes[:, :1]
    else:
        spread = np.exp(rng.normal(0, 0.3, (n, 3)))
        x = np.einsum("nk,kc,nkhw->nchw", spread, OPPONENT, planes)
        if channels != 3:  # as many mixtures of the three planes
            x = np.einsum("cd,ndhw->nchw", rng.dirichlet(np.ones(3), channels), x)
    x = (x - x.mean((1, 2, 3), keepdims=True)) / np.maximum(x.std((1, 2, 3), keepdims=True), 1e-6)
    contrast = np.exp(rng.uniform(np.log(CONTRAST[0]), np.log(CONTRAST[1]), n))[:, None, None, None]
    brightness = rng.normal(0, BRIGHTNESS, n)[:, None, None, None]
    bounded: Matrix = np.clip(contrast * x + brightness, -LIMIT, LIMIT)
    return bounded


def leaves(height: int, width: int, rng: np.random.Generator) -> Matrix:
    """Three planes [3, H, W]: luminance and two colours. Later shapes hide earlier ones."""
    planes = 0.7 * noise((3, height, width), rng.uniform(*SLOPES), rng)
    texture = noise((3, height, width), rng.uniform(0.3, 1.2), rng)
    radii = min(height, width) * np.clip(0.06 * rng.uniform(size=SHAPES) ** (-1 / 1.5), 0.03, 0.6)
    for radius in radii:
        x, y = rng.uniform(-0.1, 1.1, 2) * (width, height)
        stretch, angle, form = np.exp(rng.normal(0, 0.5)), rng.uniform(0, np.pi), rng.choice(3, p=(0.3, 0.35, 0.35))
        colour, slope, rough = rng.standard_normal((3, 1, 1)), rng.normal(0, 0.7, 2), rng.uniform(0, 0.3)
        reach = 1.5 * radius * max(stretch, 1 / stretch) + 2
        rows = slice(max(0, int(y - reach)), max(0, int(y + reach) + 1))
        columns = slice(max(0, int(x - reach)), max(0, int(x + reach) + 1))
        part = planes[:, rows, columns]
        dy, dx = np.arange(height)[rows, None] - y, np.arange(width)[None, columns] - x
        u = np.abs(np.cos(angle) * dx + np.sin(angle) * dy) / (radius * stretch)
        v = np.abs(np.cos(angle) * dy - np.sin(angle) * dx) / (radius / stretch)
        distance = np.hypot(u, v) if form == 0 else np.maximum(u, v) if form == 1 else u + v
        cover = np.clip((1 - distance) * radius + 0.5, 0, 1)  # edges one pixel wide
        shade = np.clip((slope[0] * dx + slope[1] * dy) / radius, -1, 1)
        part += cover * (colour + shade + rough * texture[:, rows, columns] - part)
    return planes


def noise(shape: tuple[int, ...], slope: float, rng: np.random.Generator) -> Matrix:
    """Gaussian noise whose amplitude spectrum over the last two axes falls as f^-slope; unit variance."""
    height, width = shape[-2:]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    spectrum = np.fft.rfft2(rng.standard_normal(shape)) * np.maximum(frequency, 1 / max(height, width)) ** -slope
    x: Array = np.fft.irfft2(spectrum, s=(height, width))
    return x / max(float(x.std()), 1e-6)
