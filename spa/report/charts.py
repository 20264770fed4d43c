"""Geometry of the page's charts, in the units of their view boxes; the templates draw it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FLOOR = 1e-6  # errors below are drawn as this


@dataclass(frozen=True)
class Chart:
    """Points (x, y) with what they stand for, ticks (place, text) of both axes, and the point that was chosen."""

    width: float
    height: float
    points: list[tuple[float, float, str]]
    across: list[tuple[float, str]]
    up: list[tuple[float, str]]
    chosen: tuple[float, float] | None = None

    @property
    def line(self) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in self.points)


def curve(data: dict[str, Any], width: float = 220, height: float = 110) -> Chart:
    """An error curve: share of the group's channels that go (all of them: the last count) against the error, logarithmic."""
    counts = [float(c) for c in data["counts"]]
    errors = [max(FLOOR, float(e)) if e is not None and math.isfinite(e) else 1.0 for e in data["errors"]]
    size = float(data.get("size") or (counts[-1] if counts else 1) or 1)
    low, high = math.log10(FLOOR), max(0.0, *(math.log10(e) for e in errors)) if errors else 0.0

    def place(count: float, error: float) -> tuple[float, float]:
        share = min(1.0, count / size)
        return share * width, height * (1 - (math.log10(error) - low) / (high - low))

    points = [
        (*place(c, e), f"{c:.0f} channels removed: error {e:.2g}")
        for c, e in zip(counts, errors, strict=False)
        if c > 0
    ]
    removed = data.get("removed")
    chosen = place(removed, interpolate(counts, errors, removed)) if removed and points else None
    across = [(0.0, "0"), (width / 2, "50%"), (width, "100%")]
    up = [(place(0, 10.0**p)[1], f"1e{p}" if p else "1") for p in range(int(low), int(high) + 1, 2)]
    return Chart(width, height, points, across, up, chosen)


def interpolate(counts: Sequence[float], errors: Sequence[float], at: float) -> float:
    """The error at a count between two levels, on the logarithm."""
    known = [(c, e) for c, e in zip(counts, errors, strict=False) if c > 0]
    below = [k for k in known if k[0] <= at]
    above = [k for k in known if k[0] >= at]
    if not below or not above:
        return (below or above)[-1 if below else 0][1]
    (c0, e0), (c1, e1) = below[-1], above[0]
    share = (at - c0) / (c1 - c0) if c1 > c0 else 0.0
    return float(math.exp((1 - share) * math.log(e0) + share * math.log(e1)))


def front(points: Sequence[dict[str, Any]], width: float = 620, height: float = 220) -> Chart:
    """Trials: share of the multiply-accumulates left against what was measured; chosen: the smallest that was good enough."""
    values = [float(p["value"]) for p in points]
    low, high = min(values), max(values)
    pad = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    low, high = low - pad, high + pad

    def place(p: dict[str, Any]) -> tuple[float, float]:
        return min(1.0, float(p["macs"])) * width, height * (1 - (float(p["value"]) - low) / (high - low))

    drawn = [(*place(p), f"{p['macs']:.1%} of the MACs: {p['value']:.4g}") for p in points]
    good = [p for p in points if p.get("fits")]
    chosen = place(min(good, key=lambda p: float(p["macs"]))) if good else None
    across = [(width * k / 4, f"{k / 4:.0%}") for k in range(5)]
    up = [(height * (1 - k / 4), f"{low + (high - low) * k / 4:.3g}") for k in range(5)]
    return Chart(width, height, drawn, across, up, chosen)
