"""Which groups have the same local structure: the same operators, read and written along the same axes, tied alike.

The graph of a group has a node per operator it touches, labelled by the operator and by which of its operands' axes belong
to the group (of a convolution's weight also the window), and an edge per activation that passes from one to the other
along the group. Two groups are taken to be isomorphic where colour refinement (Weisfeiler & Leman, 1968; Shervashidze et
al., Weisfeiler-Lehman Graph Kernels, JMLR 2011, section 3.1) gives them the same multiset of colours. Sizes do not count: a wide
block is a block.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import onnx_ir as ir

from spa.coupling import Coupling, Group
from spa.coupling.axes import Op

ROUNDS = 3  # of refinement: operators further apart than this do not tell groups apart


def classes(coupling: Coupling, groups: Sequence[Group]) -> list[int]:
    """Per group the number of its class, in order of first appearance. Linear in what the groups touch."""
    touches: dict[int, list[tuple[Op, Any]]] = defaultdict(list)
    maker = {v: op for op in coupling.ops for v in op.outputs}
    for op in coupling.ops:
        for place, value in enumerate([*op.inputs, *op.outputs]):
            if value is None:
                continue
            constant = value in coupling.constants
            place = place if place < len(op.inputs) else -1 - (place - len(op.inputs))
            for axis, _ in enumerate(coupling.shapes.shape.get(value) or ()):
                dim = coupling.dims.of.get((value, axis))
                if dim is not None:
                    touches[dim].append((op, (place, axis if constant else -1)))
    names: dict[Hashable, int] = {}

    def number(label: Hashable) -> int:
        return names.setdefault(label, len(names))

    found = []
    for group in groups:
        marks: dict[Op, list[Any]] = defaultdict(list)
        for dim in group.labels:
            for op, mark in touches.get(dim, ()):
                marks[op].append(mark)
        colour = {op: number((op.kind, window(op), tuple(sorted(m)))) for op, m in marks.items()}
        edges = [
            (maker[v], op)
            for op in marks
            for v in op.inputs
            if v is not None and v in maker and maker[v] in marks and along(coupling, group, v)
        ]
        for _ in range(ROUNDS):
            near: dict[Op, list[tuple[int, int]]] = defaultdict(list)
            for source, sink in edges:
                near[source].append((1, colour[sink]))
                near[sink].append((0, colour[source]))
            colour = {op: number((c, tuple(sorted(near[op])))) for op, c in colour.items()}
        found.append(number(("group", tuple(sorted(colour.values())))))
    order = {c: i for i, c in enumerate(dict.fromkeys(found))}
    return [order[c] for c in found]


def window(op: Op) -> tuple[int, ...]:
    """The window of a convolution, and whether it is one per channel."""
    if op.kind not in ("Conv", "ConvTranspose", "FusedConv"):
        return ()
    shape = op.shape(op.inputs[1])
    return (*shape[2:], int(op.attr("group", 1) > 1 and shape[1] == 1))


def along(coupling: Coupling, group: Group, value: ir.Value) -> bool:
    rank = len(coupling.shapes.shape.get(value) or ())
    return any(coupling.dims.of.get((value, a)) in group.labels for a in range(rank))
