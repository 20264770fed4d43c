"""Cost tables measured on this machine: what `spa bench --calibrate` wrote, and choosing kernels reads.

One file per instruction set in `<cache>/calibration`: {"isa": "avx512", "cycles": {"fma": ..., "load": ...}}. Without one the
shipped numbers hold (`kernels.isa`). Reading them imports nothing heavy: they are part of the key of the artifact cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from spa.errors import UsageError
from spa.runtime.toolchain import cache_dir

FITTED = ("fma", "load", "splat", "far", "latency")  # fields of `Isa` that are measured


def folder() -> Path:
    return cache_dir() / "calibration"


def read(isa: str) -> Mapping[str, float]:
    """The measured numbers of an instruction set; none where nothing was measured. Raises `UsageError` for a broken file."""
    path = folder() / f"{isa}.json"
    if not path.is_file():
        return {}
    try:
        cycles = {name: float(value) for name, value in json.loads(path.read_text())["cycles"].items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UsageError(f"not a cost table: {error}", str(path), "spa bench --calibrate, or delete it") from error
    if set(cycles) != set(FITTED) or not all(0 < value < 1e6 for value in cycles.values()):
        raise UsageError("not a cost table", str(path), "spa bench --calibrate, or delete it")
    return cycles


def write(isa: str, cycles: Mapping[str, float], machine: str) -> Path:
    """Keep measured numbers; later compilations choose by them."""
    path = folder() / f"{isa}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    stage = path.with_suffix(".tmp")
    stage.write_text(json.dumps({"isa": isa, "machine": machine, "cycles": dict(cycles)}, indent=1) + "\n")
    stage.replace(path)
    return path


def digest() -> str:
    """Of all tables: empty where there are none."""
    files = sorted(folder().glob("*.json")) if folder().is_dir() else []
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest() if files else ""
