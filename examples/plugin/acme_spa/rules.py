"""A rule for an operator of our own domain: `acme::Leaky`, max(x, 0) + a min(x, 0) with one a per channel.

x [N, C, ...], a [C] -> y [N, C, ...]. What a rule can say: examples/custom_rule/README.md.
"""

from spa.coupling.axes import Axes, Op
from spa.coupling.rules import Rule


def couple(op: Op, g: Axes) -> None:
    (x, a), y = op.inputs, op.out
    g.same((x, 1), (a, 0))  # number i of a belongs to channel i of x,
    for axis in range(len(op.shape(x))):
        g.same((x, axis), (y, axis))  # which is channel i of y,
        g.mark((y, axis), g.zero((x, axis)))  # and where x is zero, so is y


RULES = {("acme", "Leaky"): Rule(couple)}
