"""Recurrent layers: hidden units are the channels, and every gate, direction and state of a layer has the same ones.

W [dirs, gates*H, I] and R [dirs, gates*H, H] pack the gates along axis 1, as B [dirs, 2*gates*H] and P [dirs, 3*H] do,
so these axes are products (gates, hidden units). `hidden_size` is one number for both directions: unit i goes in both.

What masking leaves of a removed unit follows from the equations with all its rows of W, R, B and P at zero:

LSTM  C = f C_prev + i g(0), H = o h(C): zero where g(0) = h(0) = 0 and C starts at zero, whatever the gates are
GRU   H = (1-z) g(0) + z H_prev: zero where g(0) = 0 and H starts at zero
RNN   H = f(0)

`clip` and `input_forget` change none of this. The recurrent product forgets the unit in any case: its column of R is
zero as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from spa.coupling.axes import Axes, Op, Slot
from spa.coupling.edit import Edit
from spa.coupling.rules import Rule, Table
from spa.coupling.rules.contraction import contract

ZERO_AT_ZERO = {"tanh", "relu", "leakyrelu", "scaledtanh", "elu", "softsign", "thresholdedrelu"}


@dataclass(frozen=True)
class Cell:
    """`decisive`: which of a direction's activations must be zero at zero for a masked unit to stay zero."""

    gates: int
    activations: tuple[str, ...]
    decisive: tuple[int, ...]
    states: tuple[int, ...]  # inputs that hold the state at the start
    carries: int | None  # the one that a masked unit would go on carrying
    peephole: int | None = None


CELLS = {
    "LSTM": Cell(4, ("Sigmoid", "Tanh", "Tanh"), (1, 2), (5, 6), 6, 7),
    "GRU": Cell(3, ("Sigmoid", "Tanh"), (1,), (5,), 5),
    "RNN": Cell(1, ("Tanh",), (0,), (5,), None),
}


def recurrent(op: Op, g: Axes) -> None:
    x, w, r, b = op.inputs[0], op.inputs[1], op.inputs[2], op.input(3)
    assert x is not None and w is not None and r is not None
    cell, units = CELLS[op.kind], op.shape(r)[2]
    hidden = g.virtual("hidden", units)
    packed: list[tuple[ir.Value | None, int]] = [(w, cell.gates), (r, cell.gates), (b, 2 * cell.gates)]
    if cell.peephole is not None:
        packed.append((op.input(cell.peephole), 3))
    for v, gates in packed:
        if v is not None:
            part = g.virtual(("gates", gates), gates)
            g.factor((v, 1), [(part, gates), (hidden, units)])
            g.freeze(part, "gates of a recurrent layer")
            directions(g, (v, 0))
    contract(g, x, 2, w, 2)
    g.same((r, 2), hidden)
    zero, initial = stays_zero(op, g, cell), op.input(5)
    if not (zero and (initial is None or g.zero((initial, 2)))) and not g.zero((r, 2)):
        g.freeze((r, 2), "the recurrent product sees what masking leaves in this unit", approximate=True)
    states(op, g, cell, hidden, zero)


def directions(g: Axes, slot: Slot) -> None:
    g.freeze(slot, "directions of a recurrent layer")


def states(op: Op, g: Axes, cell: Cell, hidden: Slot, zero: bool) -> None:
    """Axes of X, the initial states and the outputs; `layout` 1 puts the batch first."""
    x, lengths = op.inputs[0], op.input(4)
    assert x is not None
    first = bool(op.attr("layout", 0))
    time, batch = (1, 0) if first else (0, 1)
    g.freeze((x, time), "time steps of a recurrent layer")
    if lengths is not None:
        g.freeze((lengths, 0), "lengths of sequences")
        g.same((lengths, 0), (x, batch))
    # (value, axis of the batch, axis of the directions)
    ends = [(op.input(i), 0 if first else 1, 1 if first else 0) for i in cell.states]
    ends += [(y, 0 if first else 1, 1 if first else 0) for y in op.outputs[1:]]
    full = op.outputs[0]
    ends.append((full, 0, 2) if first else (full, 2, 1))
    for v, over, way in ends:
        if v is None or not op.shape(v):
            continue
        g.same((v, over), (x, batch))
        g.same((v, len(op.shape(v)) - 1), hidden)
        directions(g, (v, way))
        if v in op.outputs:
            for axis in range(len(op.shape(v)) - 1):
                g.mark((v, axis), False)
            g.mark((v, len(op.shape(v)) - 1), zero)
    if op.shape(full):
        g.freeze((full, time if first else 0), "time steps of a recurrent layer")


def stays_zero(op: Op, g: Axes, cell: Cell) -> bool:
    """Is the state of a masked unit zero at every step?"""
    names = [str(n).lower() for n in op.attr("activations", ())] or [n.lower() for n in cell.activations]
    decisive = [n for k, n in enumerate(names) if k % len(cell.activations) in cell.decisive]
    fed = [(v, 1) for v in (*op.inputs[1:3], op.input(3)) if v is not None]
    start = [
        (v, 2) for i in cell.states if (v := op.input(i)) is not None and (i == cell.carries or op.input(4) is not None)
    ]
    return all(n in ZERO_AT_ZERO for n in decisive) and all(g.zero(s) for s in [*fed, *start])


def follow_hidden(op: Op, edit: Edit) -> None:
    if "hidden_size" in op.node.attributes:
        edit.set_attr(op, "hidden_size", edit.count_virtual(op, "hidden", op.shape(op.inputs[2])[2]))


RULES: Table = {("", kind): Rule(recurrent, follow_hidden) for kind in CELLS}
