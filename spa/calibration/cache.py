"""Statistics by content: what was gathered once for the same network, inputs, options and versions.

entry = cache.key(model, feeds, {"what": "moments", "seed": 0})
arrays = cache.get(entry)
if arrays is None:
    arrays = gather(...)
    cache.put(entry, arrays)
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import spa.cache
from spa.calibration.readers import Array
from spa.inputs import Feeds

if TYPE_CHECKING:
    from spa.model import Model

KIND = "statistics"
LIMIT = 4 << 30  # bytes of all entries; the moments of a ResNet-50 take about 1 GB
PACKAGES = ("onnx", "onnxruntime", "numpy", "scipy")


@cache
def _versions() -> str:
    return spa.cache.versions(PACKAGES, [Path(__file__).parent])


def key(model: Model, feeds: Iterable[Feeds], options: Mapping[str, Any]) -> str:
    """The name of an entry: of all bytes of the network and its inputs, the options, and our own versions."""
    network = hashlib.sha256(model.to_proto().SerializeToString(deterministic=True)).hexdigest()
    return spa.cache.key(network, feeds_digest(feeds), dict(options), _versions())


def feeds_digest(feeds: Iterable[Feeds]) -> str:
    digest = hashlib.sha256()
    for feed in feeds:
        digest.update(f"{len(feed)};".encode())
        for name, array in sorted(feed.items()):
            digest.update(f"{name!r}{array.dtype.str}{array.shape};".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def get(entry: str) -> dict[str, Array] | None:
    """The arrays of an entry; None where there is none, or a damaged one."""
    found = spa.cache.read(KIND, entry)
    if found is None:
        return None
    try:
        with np.load(io.BytesIO(found[0]["arrays.npz"]), allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def put(entry: str, arrays: Mapping[str, Array], limit: int = LIMIT) -> None:
    """Store an entry; those used longest ago make room for it."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    spa.cache.write(KIND, entry, {"arrays.npz": buffer.getvalue()}, {}, limit)
