"""Rules for the operators of a domain of our own: `acme::GroupedScale` multiplies each group of channels by a number.

y[n, c, ...] = x[n, c, ...] * scale[c // (C / groups)]        x (N, C, ...), scale (groups)
"""

from spa.coupling.axes import Axes, Op
from spa.coupling.edit import Edit
from spa.coupling.rules import Rule


def couple(op: Op, g: Axes) -> None:
    (x, scale), y, groups = op.inputs, op.out, op.attr("groups")
    for axis in range(len(op.shape(x))):
        g.same((x, axis), (y, axis))  # index i of x is index i of y,
        g.mark((y, axis), g.zero((x, axis)))  # and where x is zero, so is y
    within = op.shape(x)[1] // groups
    g.factor((x, 1), [((scale, 0), groups), (g.virtual("within", within), within)])  # channels = groups * within


def repair(op: Op, edit: Edit) -> None:
    edit.set_attr(op, "groups", edit.count((op.inputs[1], 0)))


RULES = {("acme", "GroupedScale"): Rule(couple, repair)}
