"""If, Loop and Scan: what a body reads, writes and carries is tied axis by axis to what its owner does.

Bodies share the namespace of values with the graph around them, so captured weights need no rule. Around a loop a
carried axis is the same axis in every iteration.
"""

from __future__ import annotations

import onnx_ir as ir

from spa.coupling.axes import Axes, Op
from spa.coupling.rules import Table, rows


def tie(g: Axes, a: ir.Value | None, b: ir.Value | None, shift: int = 0) -> None:
    """Axis i of a is axis i + shift of b."""
    if a is None or b is None or not (a.name and b.name):
        return
    ra, rb = (g.shapes.shape.get(v) for v in (a, b))
    if ra is None or rb is None or len(rb) != len(ra) + shift:
        for v in (a, b):
            g.freeze_all(v, "the rank changes around the loop")
        return
    for axis in range(len(ra)):
        g.same((a, axis), (b, axis + shift))


def branch(op: Op, g: Axes) -> None:
    bodies = [op.node.attributes[k].as_graph() for k in ("then_branch", "else_branch")]
    for i, y in enumerate(op.outputs):
        for axis in range(len(op.shape(y))):
            g.mark((y, axis), all(g.zero((b.outputs[i], axis)) for b in bodies))
        for b in bodies:
            tie(g, b.outputs[i], y)


def loop(op: Op, g: Axes) -> None:
    """inputs: M, cond, carried...; body: iteration, cond, carried... -> cond, carried..., scanned..."""
    body = op.node.attributes["body"].as_graph()
    carried = len(op.inputs) - 2
    for k in range(carried):
        around(g, op.inputs[2 + k], body.inputs[2 + k], body.outputs[1 + k], op.outputs[k])
    for k, y in enumerate(op.outputs[carried:]):
        collected(g, body.outputs[1 + carried + k], y)


def scan(op: Op, g: Axes) -> None:
    """inputs: states..., scanned...; one slice of each scanned input per iteration, along axis 0."""
    body = op.node.attributes["body"].as_graph()
    count = int(op.attr("num_scan_inputs"))
    states = len(op.inputs) - count
    along = [*(op.attr("scan_input_axes") or []), *(op.attr("scan_output_axes") or [])]
    if any(along):
        for v in [*op.inputs, *op.outputs, *body.inputs, *body.outputs]:
            g.freeze_all(v, "scanned along another axis than the first")
        return
    for k in range(states):
        around(g, op.inputs[k], body.inputs[k], body.outputs[k], op.outputs[k])
    for k in range(states, len(op.inputs)):
        x = op.inputs[k]
        tie(g, body.inputs[k], x, shift=1)
        if x is not None:
            g.freeze((x, 0), "the iterations of a Scan")
    for k in range(states, len(op.outputs)):
        collected(g, body.outputs[k], op.outputs[k])


def around(g: Axes, before: ir.Value | None, inside: ir.Value, after: ir.Value, out: ir.Value) -> None:
    tie(g, before, inside)
    tie(g, inside, after)
    tie(g, after, out)
    for axis in range(len(g.shapes.shape.get(out) or ())):
        g.mark((out, axis), before is not None and g.zero((before, axis)) and g.zero((after, axis)))


def collected(g: Axes, inner: ir.Value, y: ir.Value) -> None:
    tie(g, inner, y, shift=1)
    g.freeze((y, 0), "the iterations of a loop")
    for axis in range(1, len(g.shapes.shape.get(y) or ())):
        g.mark((y, axis), g.zero((inner, axis - 1)))


RULES: Table = rows(branch, "If") | rows(loop, "Loop") | rows(scan, "Scan", note="scanned along the first axis")
