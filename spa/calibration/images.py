"""Image files as inputs: decoded, resized, cut and scaled as the network was trained, said in one line of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from spa.calibration.readers import Array
from spa.calibration.synthetic import CHANNELS
from spa.errors import MissingTool, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Preprocessing:
    """Pixels 0..255 to (pixel / scale - mean) / std, in the layout of the network's input.

    The defaults are those of torchvision's ImageNet networks. `mean` and `std` have one number, or one per channel in
    the order that `order` gives."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    scale: float = 255.0
    order: Literal["rgb", "bgr"] = "rgb"
    resize: Literal["shorter", "exact"] = "shorter"  # shorter side to size, then the middle; or both sides
    size: int | None = None  # of a square; by default what the network takes
    crop: float = 1.0  # share of the resized side that is kept: 0.875 is 224 of 256
    samples: int = 256

    def __post_init__(self) -> None:
        if not self.scale or not all(self.std):
            raise ValueError("scale and std must not be zero")
        if not 0 < self.crop <= 1 or self.samples < 1 or (self.size is not None and self.size < 1):
            raise ValueError("crop lies in (0, 1], samples and size are at least 1")


@dataclass(frozen=True)
class Frame:
    """What a network's input wants of a picture."""

    channels: int
    height: int
    width: int
    last: bool  # channels last (NHWC)
    dtype: np.dtype[Any]


def frame(name: str, shape: Sequence[int], known: Sequence[bool], dtype: np.dtype[Any], side: int | None) -> Frame:
    """From an input's shape [N, C, H, W] or [N, H, W, C]; `known`: which sizes the network declares."""
    axis = next((a for a in (1, 3) if len(shape) == 4 and known[a] and shape[a] in CHANNELS), None)
    if axis is None:
        raise UsageError(
            f"the input '{name}' {list(shape)} takes no pictures",
            "rank 4 with one, three or four channels is needed",
            "an .npz file with arrays as the network takes them",
        )
    rows = (2, 3) if axis == 1 else (1, 2)
    if side is None and not all(known[r] for r in rows):
        raise UsageError(
            f"the input '{name}' does not say how large its pictures are", hint="DIR{size=224}, or --shape"
        )
    height, width = ((side, side) if side and not known[r] else (shape[r], shape[r]) for r in rows)
    return Frame(shape[axis], height[0], width[0], axis == 3, dtype)


def find_images(folder: Path) -> list[Path]:
    """Every image below `folder`, in the order of their names."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def read_images(files: Sequence[Path], how: Preprocessing, into: Frame) -> Array:
    """[N, C, H, W] or [N, H, W, C]; one picture is decoded at a time.

    Raises `MissingTool` without Pillow, and `UsageError` for a file that cannot be decoded."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingTool("Pillow is not installed: it reads image files", hint="pip install pillow") from None
    for key in ("mean", "std"):
        if len(getattr(how, key)) not in (1, into.channels):
            given = getattr(how, key) if getattr(how, key) != getattr(Preprocessing, key) else "the default"
            raise UsageError(
                f"the network takes {into.channels} channels, and {key} ({given}) has another number of values",
                hint=f"DIR{{{key}=[...]}} with one number, or one per channel",
            )
    shape = (into.height, into.width, into.channels)
    out = np.empty((len(files), *(shape if into.last else (shape[2], *shape[:2]))), into.dtype)
    for i, file in enumerate(files):
        try:
            with Image.open(file) as image:
                x = pixels(image.convert(MODES[into.channels]), how, into)
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read the image: {error}", str(file), "remove or convert it") from None
        out[i] = x if into.last else x.transpose(2, 0, 1)
    return out


def pixels(image: Image, how: Preprocessing, into: Frame) -> Array:
    """One picture [H, W, C], resized (bilinear), cut from the middle and scaled."""
    from PIL import Image

    height, width = round(into.height / how.crop), round(into.width / how.crop)
    if how.resize == "shorter":
        factor = max(height / image.height, width / image.width)
        height, width = max(height, round(image.height * factor)), max(width, round(image.width * factor))
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - into.width) // 2, (height - into.height) // 2
    x = np.asarray(resized.crop((left, top, left + into.width, top + into.height)), np.float32)
    x = x.reshape(into.height, into.width, into.channels)
    if how.order == "bgr":
        x = np.concatenate([x[:, :, 2::-1], x[:, :, 3:]], 2) if into.channels >= 3 else x
    if into.dtype.kind in "ui":  # the network scales pixels itself
        return x.astype(into.dtype)
    scaled: Array = (x / np.float32(how.scale) - np.asarray(how.mean, np.float32)) / np.asarray(how.std, np.float32)
    return scaled
