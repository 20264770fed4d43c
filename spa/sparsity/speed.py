"""How long a thin layer takes, as a share of the time it takes dense: per target and pattern, by density.

Host and wasm: the sums over the 1x1 convolutions of MobileNetV1-224, random masks, one thread (`benchmarks/kernels.py`;
AVX-512, Node 20, November 2026); where a sparse kernel does not pay the dense one runs, so no share exceeds 1. ARM: as
wasm, whose kernels have the same tiles; not measured on a board. CUDA: what 2:4 gives at best (`docs/cuda.md`). Without a
target a weight that is gone costs nothing.

A table of costs of one's own (`spa.cost_table`) may bring such lines: `[thin.block4x1]` with `density` and `share`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spa.sparsity.patterns import Pattern, parse

if TYPE_CHECKING:
    from spa.model import Model


@dataclass(frozen=True)
class Line:
    """Shares at rising densities; between them linear, below the first in proportion, above the last the dense layer's."""

    density: tuple[float, ...]
    share: tuple[float, ...]

    def at(self, density: float) -> float:
        """
        >>> line = Line((0.1, 0.5), (0.2, 0.8))
        >>> [round(line.at(d), 3) for d in (0.05, 0.1, 0.3, 0.75, 1.0)]
        [0.1, 0.2, 0.5, 0.9, 1.0]
        """
        return min(1.0, float(np.interp(density, (0.0, *self.density, 1.0), (0.0, *self.share, 1.0))))


WASM = {
    "unstructured": Line((0.05, 0.15, 0.3, 0.5), (0.08, 0.2, 0.4, 0.74)),
    "block4x1": Line((0.05, 0.15, 0.3, 0.5), (0.06, 0.16, 0.35, 0.55)),
}
LINES: Mapping[str, Mapping[str, Line]] = {
    "": {"unstructured": Line((), ())},
    "host": {
        "unstructured": Line((0.05, 0.15, 0.3, 0.35), (0.16, 0.41, 0.9, 1.0)),
        "block4x1": Line((0.05, 0.15, 0.3, 0.5, 0.7), (0.09, 0.19, 0.34, 0.58, 0.98)),
    },
    "arm": WASM,
    "wasm": WASM,
    "cuda": {"2:4": Line((0.5,), (0.77,))},
}


def form(pattern: Pattern) -> str:
    """A pattern without its share.

    >>> from spa.sparsity.patterns import parse
    >>> form(parse("block4x1:0.8")), form(parse("2:4"))
    ('block4x1', '2:4')
    """
    return str(pattern).partition(":")[0] if pattern.adjustable else str(pattern)


def lines_for(targets: Sequence[str]) -> Mapping[str, Line]:
    """Patterns that all of the targets have kernels for; each as slow as on the slowest of them."""
    tables = [LINES.get(t, {}) for t in targets] or [LINES[""]]
    common = [f for f in tables[0] if all(f in t for t in tables)]
    return {f: slowest([t[f] for t in tables]) for f in common}


def slowest(lines: Sequence[Line]) -> Line:
    points = sorted({d for line in lines for d in line.density})
    return Line(tuple(points), tuple(max(line.at(d) for line in lines) for d in points))


def effective_macs(model: Model, layers: Sequence[Mapping[str, Any]], targets: Sequence[str], sizes: Any = None) -> int:
    """Multiply-accumulates of a network, its thin layers (`facts["sparsity"]["layers"]`) counted by the time they take on
    the slowest of the targets; without a line for a pattern as dense."""
    from spa.cost import inspect

    macs = {layer.name: layer.macs for layer in inspect(model, sizes).layers}
    lines, total = lines_for(targets), float(sum(macs.values()))
    for layer in layers:
        line = lines.get(form(parse(layer["pattern"])))
        if line is not None:
            total -= macs.get(layer["node"], 0) * (1 - line.at(layer["nonzeros"] / layer["weights"]))
    return round(total)
