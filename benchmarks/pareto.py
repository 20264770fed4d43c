"""Accuracy against multiply-accumulates, one picture per network, from what `benchmarks/accuracy.py` measured.

    python benchmarks/pareto.py [RESULTS.json [FOLDER]]

Writes FOLDER/pareto_NAME.svg (docs/pictures). A line per method, from the dense network on; diamonds are aims: full with
data, hollow without. Points lie at the share that is really left, which may be below the one asked for.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from accuracy import AIMS, METHODS, RESULTS, Row, read

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 640, 380, 52, 40, 140, 44
PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
NAMES = {"data": "256 samples", "synthetic": "drawn inputs", "weights": "weights alone", "l2": "l2, not mended"}
LABEL = 15  # least distance of two labels
# colours that keep apart for most eyes, for light and for dark backgrounds, and a dash each, for those who see none
STYLE = {
    "data": ("#0b62c4", "#6cb0ff", ""),
    "synthetic": ("#b35900", "#ffa64d", "7 3"),
    "weights": ("#2e7d32", "#7ed483", "2 3"),
    "l2": ("#6b6b6b", "#b5b5b5", "1 3"),
    "torch-pruning": ("#8e24aa", "#dd8cf0", "9 3 2 3"),
    "onnxsim": ("#c2185b", "#ff86b3", "5 5"),
}


@dataclass(frozen=True)
class Frame:
    """Shares from `low` to 1 and values from 0 to 1, in the picture's units."""

    low: float

    def x(self, share: float) -> float:
        return LEFT + (share - self.low) / (1 - self.low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return TOP + (1 - value) * (HEIGHT - TOP - BOTTOM)


def lines(name: str, rows: list[Row]) -> dict[str, list[tuple[float, float]]]:
    """Method -> (share left, value) from the dense network downwards."""
    dense = next(r.value for r in rows if r.network == name and r.method == "dense")
    found = {}
    for method in METHODS:
        own = [
            r for r in rows if (r.network, r.method) == (name, method) and r.value is not None and r.macs is not None
        ]
        if own:
            found[method] = sorted([(1.0, dense or 0.0), *((r.macs or 0.0, r.value or 0.0) for r in own)], reverse=True)
    return found


def spread(places: list[float]) -> list[float]:
    """The same places, moved down where they are closer than a label is high."""
    order, found = sorted(range(len(places)), key=places.__getitem__), list(places)
    for above, below in pairwise(order):
        found[below] = max(found[below], found[above] + LABEL)
    over = max(0.0, found[order[-1]] - (HEIGHT - BOTTOM)) if order else 0.0
    return [p - over for p in found]


def diamond(x: float, y: float, full: bool) -> str:
    return f'<path class="aim{"" if full else " hollow"}" d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6-6z"/>'


def sheet() -> str:
    light = "".join(f".{m}{{--c:{c}}}" for m, (c, _, _) in STYLE.items())
    dark = "".join(f".{m}{{--c:{c}}}" for m, (_, c, _) in STYLE.items())
    dashes = "".join(f".{m} polyline{{stroke-dasharray:{d}}}" for m, (_, _, d) in STYLE.items() if d)
    return (
        "svg{--ink:#1f2328;--paper:#ffffff;--grid:#d8dee4;font:12px system-ui,sans-serif}"
        f"{light}@media(prefers-color-scheme:dark){{svg{{--ink:#e6edf3;--paper:#0d1117;--grid:#30363d}}{dark}}}{dashes}"
        ".paper{fill:var(--paper)}text{fill:var(--ink)}.title{font-size:14px;font-weight:600}"
        ".grid{stroke:var(--grid)}.dense{stroke:var(--ink);stroke-dasharray:4 4}polyline{fill:none;stroke:var(--c);stroke-width:2}"
        "circle{fill:var(--c)}.name{fill:var(--c)}.aim{fill:var(--ink);stroke:var(--ink);stroke-width:1.5}.hollow{fill:var(--paper)}"
    )


def picture(name: str, rows: list[Row]) -> str:
    """The SVG of one network; what is drawn is also said in the titles of its points."""
    drawn = lines(name, rows)
    dense = next(r for r in rows if r.network == name and r.method == "dense")
    aims = AIMS.get(name, {})
    shares = [x for points in drawn.values() for x, _ in points] + list(aims)
    frame = Frame(min(0.9, (10 * min(shares, default=0.5) - 0.5) // 1 / 10))
    right = WIDTH - RIGHT
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(name)}: {escape(dense.metric)} against multiply-accumulates kept</title><style>{sheet()}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
        f'<text class="title" x="{LEFT}" y="24">{escape(name)}</text>',
    ]
    for k in range(6):
        y = frame.y(k / 5)
        svg.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        svg.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{20 * k}</text>')
    for k in range(round(10 * frame.low), 11):
        x = frame.x(k / 10)
        svg.append(f'<path class="grid" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        svg.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{10 * k}</text>')
    axis = "F1 with the dense network" if dense.metric == "F1" else "top-1"
    svg.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">multiply-accumulates kept, % (across); {axis}, % (up)</text>')
    level = frame.y(dense.value or 0.0)
    svg.append(f'<path class="dense" d="M{LEFT} {level:.1f}H{right}"/>')
    places = spread([frame.y(points[-1][1]) for points in drawn.values()])
    # labels stand at the right, in the order in which lines end at the left
    for (method, points), place in zip(drawn.items(), places, strict=True):
        at = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
        said = NAMES.get(method, method)
        svg.append(f'<g class="{method}"><polyline points="{at}"/>')
        for x, y in points[1:]:
            told = f"{said}: {100 * y:.1f} at {100 * x:.1f} % of the MACs"
            svg.append(f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3.5"><title>{told}</title></circle>')
        svg.append(f'<polyline points="{right + 12},{place:.1f} {right + 34},{place:.1f}"/>')
        svg.append(f'<text class="name" x="{right + 40}" y="{place + 4:.1f}">{escape(said)}</text></g>')
    for share, (data, drawn_aim) in aims.items():
        svg += [
            diamond(frame.x(share), frame.y(aim), full)
            for aim, full in ((data, True), (drawn_aim, False))
            if aim is not None
        ]
    svg.append(f'<text x="{right + 12}" y="24">{"◆ ◇ aims, " if aims else ""}– – dense</text></svg>')
    return "\n".join(svg) + "\n"


def main(arguments: list[str]) -> int:
    rows = list(read(Path(arguments[0]) if arguments else RESULTS).values())
    folder = Path(arguments[1]) if len(arguments) > 1 else PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted({r.network for r in rows if r.method == "dense"}):
        path = folder / f"pareto_{name}.svg"
        path.write_text(picture(name, rows))
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
