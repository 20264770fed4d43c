"""Where calibration inputs come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spa.calibration.synthetic import synthetic
from spa.errors import UsageError
from spa.inputs import Feeds

if TYPE_CHECKING:
    from spa.model import Model


def split_batches(arrays: Feeds, model: Model, batch: int = 16) -> list[Feeds]:
    """Arrays with all samples along the first axis -> feeds of the network's batch size (`batch` where it is symbolic)."""
    inputs = {v.name or "": v for v in model.ir.graph.inputs}
    fixed = {d for n in arrays if (s := inputs[n].shape) is not None and len(s) and isinstance(d := s[0], int)}
    size = min(fixed) if fixed else batch
    total = min(len(a) for a in arrays.values())
    ends = range(size, total + 1, size) if fixed else range(min(size, total), total + size, size)
    return [{n: a[e - size : e] for n, a in arrays.items()} for e in ends if e - size < total]


def load(
    source: Any, model: Model, *, sizes: dict[str, int] | None = None, seed: int = 0, batch: int = 16
) -> list[Feeds]:
    """Calibration inputs as feeds of the network's batch size.

    `source`: an .npz file (one array per input, samples along the first axis) or .npy file (one input), the same as
    arrays, ready feeds, or "synthetic" for drawn ones. Raises `UsageError` for anything else."""
    if isinstance(source, list):
        return source
    if isinstance(source, str) and source == "synthetic":
        return synthetic(model, sizes=sizes, seed=seed)
    initial = {v.name for v in model.ir.graph.initializers.values()}
    names = [v.name or "" for v in model.ir.graph.inputs if v.name not in initial]
    if isinstance(source, str | Path):
        try:
            loaded = np.load(source, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"cannot read the calibration inputs: {error}", str(source), "an .npz or .npy file"
            ) from None
        source = dict(loaded) if hasattr(loaded, "files") else loaded
    if isinstance(source, np.ndarray):
        source = {names[0]: source} if len(names) == 1 else {}
    if missing := [n for n in names if n not in source]:
        raise UsageError(
            f"no calibration array for the input '{missing[0]}'", f"found {sorted(source)}", f"name the arrays {names}"
        )
    return split_batches({n: np.asarray(source[n]) for n in names}, model, batch)
