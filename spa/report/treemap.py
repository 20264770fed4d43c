"""Squarified treemaps: areas in proportion, tiles as near to squares as they get.

Bruls, Huizing, van Wijk: Squarified Treemaps (Eurographics 2000), the procedure of section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Rect = tuple[float, float, float, float]  # x, y, width, height


def squarify(sizes: Sequence[float], width: float, height: float) -> list[Rect]:
    """A rectangle per size (all > 0, largest first looks best), filling width times height.

    >>> squarify([3, 1], 4, 1)
    [(0.0, 0.0, 3.0, 1.0), (3.0, 0.0, 1.0, 1.0)]
    """
    total = sum(sizes)
    areas = [s * width * height / total for s in sizes] if total > 0 else []
    found: list[Rect] = []
    x = y = 0.0
    at = 0
    while at < len(areas):
        side = min(width, height)
        end = at + 1
        while end < len(areas) and worst(areas[at : end + 1], side) <= worst(areas[at:end], side):
            end += 1
        row = areas[at:end]
        thick = sum(row) / side if side > 0 else 0.0
        place = 0.0
        for area in row:
            length = area / thick if thick > 0 else 0.0
            found.append((x, y + place, thick, length) if width >= height else (x + place, y, length, thick))
            place += length
        if width >= height:
            x, width = x + thick, max(width - thick, 0.0)
        else:
            y, height = y + thick, max(height - thick, 0.0)
        at = end
    return found


def worst(row: Sequence[float], side: float) -> float:
    """The largest ratio of sides in a row of these areas along `side`."""
    total = sum(row)
    if total <= 0 or side <= 0:
        return float("inf")
    return max(side * side * max(row) / total**2, total**2 / (side * side * min(row)))


@dataclass(frozen=True)
class Tile:
    """A layer's share of a picture: `kept` of its height is what is left of it; `label` where there is room for one."""

    name: str
    kind: int  # colour of its operator
    op: str
    x: float
    y: float
    width: float
    height: float
    before: float
    after: float
    label: str

    @property
    def kept(self) -> float:
        return min(1.0, self.after / self.before) if self.before else 0.0


LETTER = 6.9  # px, of the widest of the usual fonts at 11 px
REST = 0.002  # of the whole: layers smaller than this share one tile


def tiles(
    rows: Sequence[dict[str, object]], key: str, colours: dict[str, int], width: float, height: float
) -> list[Tile]:
    """Of the layers' `key`: a tile is as large as the layer was before, or is now where that is not known."""
    weights: list[tuple[float, float, str, str]] = []
    for row in rows:
        before, after = row["before"], row["after"]
        was = float(before[key]) if isinstance(before, dict) else None
        now = float(after[key]) if isinstance(after, dict) else 0.0
        weights.append((max(was if was is not None else now, now), now, str(row["name"]), str(row["op"])))
    total = sum(w[0] for w in weights)
    large = sorted((w for w in weights if w[0] > REST * total), key=lambda w: -w[0])
    small = [w for w in weights if 0 < w[0] <= REST * total]
    if small:
        large.append((sum(w[0] for w in small), sum(w[1] for w in small), f"{len(small)} others", ""))
    found = []
    for (was, now, name, op), (x, y, w, h) in zip(large, squarify([w[0] for w in large], width, height), strict=True):
        label = (
            shortened(name.removesuffix(f"/{op}"), int((w - 9) / LETTER)) if h > 20 else ""
        )  # the colour tells the operator
        found.append(Tile(name, colours.get(op, 0), op, x, y, w, h, was, now, label))
    return found


def shortened(name: str, letters: int) -> str:
    """The end of a long name says more than its beginning; nothing where too little would be left."""
    if len(name) <= letters:
        return name
    return "…" + name[1 - letters :] if letters >= 5 else ""
