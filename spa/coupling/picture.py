"""A picture of one group's neighbourhood: its nodes as boxes in layers, the constants it slices inside them.

Plain SVG, written by hand: layers by longest path, boxes of a layer ordered by the mean place of what they read, edges
along which channels of the group pass drawn strong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import onnx_ir as ir

from spa.coupling.explain import label, path

if TYPE_CHECKING:
    from spa.coupling.analysis import Coupling, Group
    from spa.coupling.axes import Op

NODES = 40  # drawn; those nearest to where the group begins
# px: a letter's width, a line, inside a box, between boxes, between layers
LETTER, LINE, PAD, GAP, RISE = 7.2, 16, 10, 26, 44
TOP = 62.0  # px: below the heading
WIDEST = 30  # letters in a line
STYLE = """
 text { font: 12px ui-monospace, monospace; fill: #1f2933 }
 .title { font-weight: bold } .small { fill: #52606d } .heading { font: bold 15px sans-serif }
 rect { fill: #fff; stroke: #9aa5b1 } .weighs rect { fill: #e6f0fb; stroke: #2b6cb0 }
 path { fill: none; stroke: #cbd2d9; stroke-width: 1.3 } path.tied { stroke: #2b6cb0; stroke-width: 2.2 }
"""


@dataclass
class Box:
    """One node of the network; without lines, a place where an edge passes a layer."""

    name: str
    lines: list[str]
    layer: int = 0
    x: float = 0.0
    y: float = 0.0
    reads: list[tuple[Box, bool]] = field(default_factory=list)  # does the group pass?

    @property
    def width(self) -> float:
        return max(len(t) for t in self.lines) * LETTER + 2 * PAD if self.lines else 0.0

    @property
    def height(self) -> float:
        return len(self.lines) * LINE + PAD

    @property
    def middle(self) -> float:
        return self.x + self.width / 2


def write_svg(coupling: Coupling, group: Group, file: Path) -> None:
    file.write_text(draw(coupling, group), encoding="utf-8")


def draw(coupling: Coupling, group: Group) -> str:
    """The SVG document."""
    ops = path(coupling, group)
    shown = nearest(ops, NODES)
    boxes = [Box(label(o), texts(coupling, group, o)) for o in shown]
    boxes = connect(shown, boxes, {m.value for m in group.members})
    width, height = arrange(boxes)
    heading = f"{group.id}: {group.size} channels"
    left_out = len(ops) - len(shown)
    note = f"{len(ops)} nodes" + (f", the {len(shown)} nearest to the start" if left_out else "") + "; [n] loses slices"
    width = max(width, len(heading) * 9 + 2 * GAP, len(note) * LETTER + 2 * GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}">',
        f"<style>{STYLE}</style>",
        f'<rect width="{width:.0f}" height="{height:.0f}" style="fill:#f8f9fb;stroke:none"/>',
        f'<text class="heading" x="{GAP}" y="24">{escape(heading)}</text>',
        f'<text class="small" x="{GAP}" y="42">{escape(note)}</text>',
        *(_edge(a, b, tied) for strong in (False, True) for b in boxes for a, tied in b.reads if tied == strong),
        *(_box(b) for b in boxes if b.lines),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def nearest(ops: list[Op], limit: int) -> list[Op]:
    """Breadth first from the first node, over shared values; in order of execution."""
    if len(ops) <= limit:
        return ops
    by_value: dict[ir.Value, list[int]] = {}
    for i, o in enumerate(ops):
        for v in [*o.inputs, *o.outputs]:
            if v is not None:
                by_value.setdefault(v, []).append(i)
    seen, queue = {0}, deque([0])
    while queue and len(seen) < limit:
        o = ops[queue.popleft()]
        for v in [*o.inputs, *o.outputs]:
            for j in by_value.get(v, ()) if v is not None else ():
                if j not in seen and len(seen) < limit:
                    seen.add(j)
                    queue.append(j)
    return [ops[i] for i in sorted(seen)]


def texts(coupling: Coupling, group: Group, op: Op) -> list[str]:
    """Operator, name, and the constants that lose slices."""
    lines = [op.kind, shorten(label(op))]
    sliced = {(m.value, m.axis) for m in group.members if m.constant}
    for v in op.inputs:
        if v is None:
            continue
        axes = [a for a in range(len(op.shape(v))) if (v.name, a) in sliced]
        if axes:
            shape = "×".join(f"[{n}]" if a in axes else str(n) for a, n in enumerate(op.shape(v)))
            lines.append(f"{shorten(v.name or '', WIDEST - len(shape) - 1)} {shape}")
    return lines


def shorten(text: str, limit: int = WIDEST) -> str:
    """The end of a long name says more than its beginning."""
    return text if len(text) <= max(limit, 8) else "…" + text[1 - max(limit, 8) :]


def connect(ops: list[Op], boxes: list[Box], members: set[str]) -> list[Box]:
    """Edges and layers; returns the boxes with the places where long edges pass."""
    made = {v: i for i, o in enumerate(ops) for v in o.outputs}
    every = list(boxes)
    for o, b in zip(ops, boxes, strict=True):
        reads = {made[v]: v.name in members for v in o.inputs if v is not None and v in made}
        b.layer = max((boxes[i].layer + 1 for i in reads), default=0)
        for i, tied in reads.items():
            source = boxes[i]
            for layer in range(source.layer + 1, b.layer):
                step = Box("", [], layer, reads=[(source, tied)])
                every.append(step)
                source = step
            b.reads.append((source, tied))
    return every


def arrange(boxes: list[Box]) -> tuple[float, float]:
    """Give every box its place; returns the size of the picture."""
    layers: dict[int, list[Box]] = {}
    for b in boxes:
        layers.setdefault(b.layer, []).append(b)
    widths = {k: sum(b.width for b in row) + GAP * (len(row) - 1) for k, row in layers.items()}
    total = max(widths.values(), default=0.0)
    y = TOP
    for k in sorted(layers):
        row = sorted(layers[k], key=lambda b: _mean(a.middle for a, _ in b.reads))
        tall = max(b.height for b in row)
        x = GAP + (total - widths[k]) / 2
        for b in row:
            b.x, b.y = x, y if b.lines else y + (tall - b.height) / 2
            x += b.width + GAP
        y += tall + RISE
    return total + 2 * GAP, y - RISE + GAP


def _mean(places: Iterable[float]) -> float:
    found = list(places)
    return sum(found) / len(found) if found else 0.0


def _edge(a: Box, b: Box, tied: bool) -> str:
    x0, y0, x1, y1 = a.middle, a.y + a.height, b.middle, b.y
    half = (y0 + y1) / 2
    kind = ' class="tied"' if tied else ""
    down = "" if b.lines else f" V {y1 + b.height:.1f}"  # on through the layer that it passes
    return f'<path{kind} d="M {x0:.1f} {y0:.1f} C {x0:.1f} {half:.1f} {x1:.1f} {half:.1f} {x1:.1f} {y1:.1f}{down}"/>'


def _box(b: Box) -> str:
    style = ' class="weighs"' if len(b.lines) > 2 else ""
    rows = [
        f'<text class="{"title" if k == 0 else "small"}" x="{b.x + PAD:.1f}" y="{b.y + LINE * (k + 1):.1f}">{escape(t)}</text>'
        for k, t in enumerate(b.lines)
    ]
    frame = f'<rect x="{b.x:.1f}" y="{b.y:.1f}" width="{b.width:.1f}" height="{b.height:.1f}" rx="5"/>'
    return f"<g{style}><title>{escape(b.name)}</title>{frame}{''.join(rows)}</g>"
