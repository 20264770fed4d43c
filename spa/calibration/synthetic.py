"""Calibration inputs without data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spa.calibration.readers import Array
from spa.inputs import Feeds
from spa.shapes import infer

if TYPE_CHECKING:
    from spa.model import Model

SYNTHETIC = 64  # inputs drawn where there is no data


def synthetic(model: Model, *, sizes: dict[str, int] | None = None, seed: int = 0) -> list[Feeds]:
    """Drawn inputs; pictures (rank 4, three channels or one) get the 1/f spectrum of natural ones."""
    from spa.inputs import draw

    shapes = infer(model.ir, sizes)
    feeds: list[Feeds] = []
    rows = 0
    while rows < SYNTHETIC:
        feed = draw(model, seed=seed + len(feeds), sizes=sizes, shapes=shapes)
        feed = {
            n: pink(a) if a.ndim == 4 and a.dtype.kind == "f" and a.shape[1] in (1, 3) else a for n, a in feed.items()
        }
        feeds.append(feed)
        rows += min((len(a) for a in feed.values() if a.ndim), default=1)
    return feeds


def pink(noise: Array) -> Array:
    """White noise [N, C, H, W] to amplitude 1/f, channels correlated, unit variance."""
    spectrum = np.fft.rfft2(noise.astype(np.float64))
    fy, fx = np.fft.fftfreq(noise.shape[2])[:, None], np.fft.rfftfreq(noise.shape[3])[None]
    spectrum /= np.maximum(np.hypot(fy, fx), 1 / max(noise.shape[2:]))
    image = np.fft.irfft2(spectrum, s=noise.shape[2:])
    image = 0.7 * image.mean(1, keepdims=True) * np.sqrt(image.shape[1]) + 0.3 * image
    pictures: Array = ((image - image.mean()) / image.std()).astype(noise.dtype)
    return pictures
