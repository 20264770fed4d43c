"""How operators follow when the axes of their operands change places: one row each in `RULES` and `ENDS`.

A rule takes a node that works on transposed values, the order `perm` (ONNX's: axis i of the transposed value is axis
perm[i] of the other), and what is known of the graph. It gives what the node must become to work on the untransposed
values and give its result untransposed too, or None. The rules of `ENDS` give the same result as before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from spa.codegen.fusion import ATTRIBUTES

Array = np.ndarray[Any, Any]
Perm = tuple[int, ...]


@dataclass(frozen=True)
class Change:
    """Attributes and constant operands (by position) that become others."""

    attributes: Mapping[str, Any] = field(default_factory=dict)
    consts: Mapping[int, Array] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Known:
    """Constants and static shapes of a graph, by name."""

    tensors: Mapping[str, TensorProto]
    shapes: Mapping[str, tuple[int, ...]]

    def const(self, name: str) -> Array | None:
        return numpy_helper.to_array(self.tensors[name]) if name in self.tensors else None


Rule = Callable[[NodeProto, Perm, Known], Change | None]


def attributes(node: NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def pointwise(node: NodeProto, perm: Perm, known: Known) -> Change | None:
    """Element by element, operands broadcast: constants follow."""
    back, changed = np.argsort(perm), {}
    for i, name in enumerate(node.input):
        tensor = known.tensors.get(name)
        if tensor is None or int(np.prod(tensor.dims)) == 1:
            continue
        if len(tensor.dims) > len(perm):
            return None
        value = numpy_helper.to_array(tensor)
        changed[i] = value.reshape((1,) * (len(perm) - value.ndim) + value.shape).transpose(back)
    return Change(consts=changed)


def _along(default: int) -> Rule:
    """Along one axis."""

    def rule(node: NodeProto, perm: Perm, known: Known) -> Change | None:
        axis = attributes(node).get("axis", default)
        return Change({"axis": perm[axis % len(perm)]}) if attributes(node).get("keepdims", 1) else None

    return rule


def _axes(node: NodeProto, known: Known) -> list[int] | None:
    """Those of a reduction; None where they are not known."""
    given = attributes(node).get("axes")
    if given is None and len(node.input) > 1 and node.input[1]:
        const = known.const(node.input[1])
        given = None if const is None else const.tolist()
    return given


def _mapped(node: NodeProto, axes: Sequence[int]) -> Change:
    if any(a.name == "axes" for a in node.attribute):
        return Change({"axes": list(axes)})
    return Change(consts={1: np.array(axes, np.int64)})


def reduction(node: NodeProto, perm: Perm, known: Known) -> Change | None:
    axes = _axes(node, known)
    if axes is None or not attributes(node).get("keepdims", 1):
        return None
    return _mapped(node, [perm[a % len(perm)] for a in axes])


def ending_reduction(node: NodeProto, perm: Perm, known: Known) -> Change | None:
    """Without the axes it reduces: those that are left must be in order."""
    axes = _axes(node, known)
    if axes is None or attributes(node).get("keepdims", 1):
        return None
    gone = {a % len(perm) for a in axes}
    left = [perm[i] for i in range(len(perm)) if i not in gone]
    return _mapped(node, sorted(perm[a] for a in gone)) if left == sorted(left) else None


def pad(node: NodeProto, perm: Perm, known: Known) -> Change | None:
    pads = known.const(node.input[1])
    if pads is None or len(node.input) > 3 or pads.size != 2 * len(perm):
        return None
    return Change(consts={1: pads.reshape(2, -1)[:, np.argsort(perm)].reshape(-1)})


def slices(node: NodeProto, perm: Perm, known: Known) -> Change | None:
    given = [known.const(name) for name in node.input[1:]]
    if len(given) < 2 or any(value is None for value in given):
        return None
    axes = given[2] if len(given) > 2 else np.arange(given[0].size if given[0] is not None else 0)
    assert axes is not None
    return Change(consts={3: np.array([perm[int(a) % len(perm)] for a in axes.reshape(-1)], np.int64)})


# other element-wise operators than those that kernels know
POINTWISE = (
    *("And", "Cast", "Ceil", "Celu", "Cos", "Equal", "Floor", "Greater", "GreaterOrEqual", "Identity", "IsNaN", "Less"),
    *("LessOrEqual", "Log", "Mish", "Not", "Or", "Round", "Selu", "Sign", "Sin", "Softplus", "Softsign", "Where"),
)
REDUCTIONS = tuple(f"Reduce{name}" for name in ("Mean", "Sum", "Max", "Min", "L1", "L2", "Prod", "SumSquare"))

RULES: dict[str, Rule] = {
    **dict.fromkeys((*ATTRIBUTES, *POINTWISE), pointwise),
    **dict.fromkeys(REDUCTIONS, reduction),
    **dict.fromkeys(("Softmax", "LogSoftmax", "LpNormalization"), _along(-1)),
    **dict.fromkeys(("Concat", "Split", "ArgMax", "ArgMin"), _along(0)),
    "Pad": pad,
    "Slice": slices,
}
ENDS: dict[str, Rule] = dict.fromkeys(REDUCTIONS, ending_reduction)
