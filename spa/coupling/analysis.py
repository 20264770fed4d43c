"""The driver: every node speaks through its rule, relations become dims, dims become groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import networkx as nx
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spa.coupling import groups as grouping
from spa.coupling.axes import Axes, Op, Reason, Slot
from spa.coupling.groups import Closure, Dims, Labels
from spa.coupling.prepare import COPY, prepare
from spa.coupling.rules import table
from spa.model import Model
from spa.shapes import Shapes, infer, subgraphs, tensor_of
from spa.shapes import constants as constant_names

Mask = npt.NDArray[np.bool_]
# positions where masking leaves a constant as it is: zero would not be neutral there (interface.md, "removed")
PROTECTED = {
    "Div": (1,),
    "Pow": (0, 1),
    "Reciprocal": (0,),
    "Log": (0,),
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
}


@dataclass(frozen=True)
class Member:
    """One axis that a group runs through."""

    value: str
    axis: int
    constant: bool


@dataclass(eq=False)
class Group:
    """Channels 0 .. size-1, each a set of indices on several axes that can only be removed together.

    `labels[dim][i]` is the channel that index i of a dim belongs to, -1 where none; `dims` of `Coupling` tell which
    axes of which values a dim stands for.
    """

    id: str
    size: int
    labels: dict[int, Labels]
    members: list[Member]
    exact: bool
    notes: list[Reason] = field(default_factory=list)


@dataclass(frozen=True)
class Blocked:
    """A group none of whose channels can be removed, and why."""

    group: str
    reasons: tuple[Reason, ...]

    @property
    def reason(self) -> Reason:
        return self.reasons[0]


@dataclass(eq=False)
class Coupling:
    """The result of `analyze`: prunable groups, blocked ones with reasons, and the relations behind them."""

    model: Model
    shapes: Shapes
    axes: Axes
    dims: Dims
    ops: list[Op]
    constants: dict[ir.Value, str]  # every constant tensor and the name a plan gives it
    groups: list[Group]
    blocked: list[Blocked]

    def group(self, name: str) -> Group | None:
        return next((g for g in self.groups if g.id == name), None)

    @cached_property
    def parameters(self) -> dict[int, list[tuple[ir.Value, int]]]:
        """dim -> the axes of floating-point constants (of rank 1 and more) that it stands for."""
        return parameter_slots(self.axes, self.dims, self.constants)

    def explain(self, name: str | None = None) -> str:
        from spa.coupling.explain import explain

        return explain(self, name)

    def to_networkx(self) -> nx.Graph:
        """Nodes `(value name, axis)`, with size, group ids and reasons; an edge per stated relation, with its kind."""
        from spa.coupling.explain import to_networkx

        return to_networkx(self)

    def _repr_html_(self) -> str:
        from spa.report.notebook import coupling

        return coupling(self)

    def removal(self, chosen: dict[str, Mask]) -> dict[int, Mask]:
        """Channels to remove per group -> indices to remove per dim."""
        gone: dict[int, Mask] = {}
        for group in self.groups:
            mask = chosen.get(group.id)
            if mask is None or not mask.any():
                continue
            for dim, labels in group.labels.items():
                hit = (labels >= 0) & mask[labels]
                gone[dim] = gone[dim] | hit if dim in gone else hit
        return {d: m for d, m in gone.items() if m.any()}


def analyze(model: Model, *, sizes: dict[str, int] | None = None, allow_approximate: bool = False) -> Coupling:
    """Couple the channels of a network, local functions expanded (`Coupling.model`). Linear in nodes and channels; no weight is read.

    `sizes` fixes symbolic dimensions; `allow_approximate` lets groups be pruned whose removal is not exactly the same
    as masking (normalisation over the axis), marked `exact=False`.
    """
    model = prepare(model)
    shapes = infer(model.ir, sizes)
    axes = Axes(shapes, allow_approximate)
    opsets = dict(model.ir.opset_imports)
    ops = [Op(n, shapes, n.version or opsets.get(n.domain, 1)) for n in nodes(model.ir.graph)]
    constants = constant_names(model.ir)
    protect(axes, ops, constants)
    doubt_copies(axes, constants)
    doubt_carried(axes, ops)
    for op in ops:
        axes.op = op
        state(op, axes)
    axes.op = None
    tie_copies(axes, constants)
    for value in [*model.ir.graph.inputs, *model.ir.graph.outputs]:
        if value not in constants:
            kind = "input" if value.is_graph_input() else "output"
            axes.freeze_all(value, f"{kind} '{value.name}' of the network")
    for slot in list(axes.size):
        owner, axis = slot
        dynamic = shapes.dynamic.get(owner, ()) if isinstance(owner, ir.Value) else ()
        if axis is not None and axis < len(dynamic) and dynamic[axis]:
            axes.freeze(slot, "the size of this axis is dynamic")
    dims = grouping.contract(axes)
    found = grouping.closures(dims, relevant(axes, dims, constants))
    prunable, blocked = name_groups(axes, dims, found, constants)
    return Coupling(model, shapes, axes, dims, ops, constants, prunable, blocked)


def nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """All nodes in the order of execution; a subgraph's come before the node that owns it."""
    for node in graph:
        for attr in node.attributes.values():
            for body in subgraphs(attr):
                yield from nodes(body)
        yield node


def tie_copies(axes: Axes, constants: dict[ir.Value, str]) -> None:
    """A constant of a local function stands once per call after inlining: all copies lose the same slices."""
    first: dict[str, ir.Value] = {}
    for value, name in constants.items():
        twin = first.setdefault(name, value)
        if twin is not value:
            for axis in range(len(axes.shapes.shape.get(value) or ())):
                axes.same((twin, axis), (value, axis))


def protect(axes: Axes, ops: list[Op], constants: dict[ir.Value, str]) -> None:
    for op in ops:
        for i in PROTECTED.get(op.kind, ()):
            value = op.input(i)
            if value in constants:
                for axis in range(len(op.shape(value))):
                    axes.mark((value, axis), False)


def doubt_copies(axes: Axes, constants: dict[ir.Value, str]) -> None:
    """A filler's copies are not masked: what they hold at a removed index is what they hold everywhere."""
    for value in constants:
        tensor = tensor_of(value) if COPY in value.meta else None
        if tensor is not None and np.any(tensor.numpy()):
            for axis in range(len(tensor.shape)):
                axes.mark((value, axis), False)


def doubt_carried(axes: Axes, ops: list[Op]) -> None:
    """What enters a loop body may have gone round already: only its owner's rule, which speaks later, knows more."""
    for op in ops:
        if op.kind in ("Loop", "Scan"):
            for value in op.node.attributes["body"].as_graph().inputs:
                for axis in range(len(op.shape(value))):
                    axes.mark((value, axis), False)


def state(op: Op, axes: Axes) -> None:
    """Let one node's rule speak, or freeze what the node touches."""
    values = [v for v in [*op.inputs, *op.outputs] if v is not None and (v.name or v in axes.shapes.shape)]
    rule = table().get((op.node.domain if op.node.domain != "ai.onnx" else "", op.kind))
    unknown = next((v for v in values if axes.shapes.shape.get(v) is None), None)
    if rule is None:
        label = f"{op.node.domain}::{op.kind}" if op.node.domain else op.kind
        why = f"no rule for the operator {label}"
    elif unknown is not None:
        why = f"the shape of '{unknown.name}' is not known"
    else:
        rule.couple(op, axes)
        return
    for value in values:
        axes.freeze_all(value, why)


def parameter_slots(axes: Axes, dims: Dims, constants: dict[ir.Value, str]) -> dict[int, list[tuple[ir.Value, int]]]:
    """dim -> the axes of weights that it stands for; taps of windows are no channels, whatever leads to them."""
    found: dict[int, list[tuple[ir.Value, int]]] = {}
    taps = {dims.of[slot] for slot in axes.kernel if slot in dims.of}
    for dim, slots in enumerate(dims.slots):
        for value, axis in slots if dim not in taps else ():
            if isinstance(value, ir.Value) and axis is not None and value in constants and is_weight(value):
                found.setdefault(dim, []).append((value, axis))
    return found


def is_weight(value: ir.Value) -> bool:
    """Floating-point or quantised: something training made, not an index or a shape."""
    tensor = tensor_of(value) if COPY not in value.meta else None
    return tensor is not None and (tensor.dtype.is_floating_point() or tensor.dtype in QUANTISED)


QUANTISED = {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4}


def relevant(axes: Axes, dims: Dims, constants: dict[ir.Value, str]) -> Mask:
    """Which dims are connected, through whatever relation, to a parameter."""
    pairs = [(np.array([a]), np.array([b])) for a, b, _ in dims.graph.edges]
    pairs += [(np.array([m]), np.array([d])) for m, parts in dims.factors for d, _ in parts]
    _, component = grouping.joined(len(dims.size), pairs)
    live = {component[d] for d in parameter_slots(axes, dims, constants)}
    return np.isin(component, list(live))


def name_groups(
    axes: Axes, dims: Dims, found: list[Closure], constants: dict[ir.Value, str]
) -> tuple[list[Group], list[Blocked]]:
    parameters = parameter_slots(axes, dims, constants)
    prunable: list[Group] = []
    blocked: list[Blocked] = []
    used: dict[str, int] = {}
    order = {slot: i for i, slot in enumerate(axes.size)}
    for closure in found:
        weighs = np.zeros(closure.count, bool)  # does the class hold a parameter?
        for dim, labels in closure.labels.items():
            if dim in parameters:
                weighs[labels[labels >= 0]] = True
        if not weighs.any():
            continue
        touched = [d for d in closure.labels if (closure.labels[d] >= 0).any()]
        name = _name([s for d in touched for s in parameters.get(d, ())], order, used)
        free = weighs & ~closure.stuck
        if not free.any():
            seen: dict[Reason, None] = dict.fromkeys(r for hit, r in closure.reasons if weighs[hit].any())
            blocked.append(Blocked(name, tuple(seen)))
            continue
        rank = np.where(free, np.cumsum(free) - 1, -1)
        ranked = {d: np.where(closure.labels[d] >= 0, rank[closure.labels[d]], -1) for d in touched}
        ranked = {d: v for d, v in ranked.items() if (v >= 0).any()}
        slots = [s for d in ranked for s in dims.slots[d]]
        members = [
            Member(v.name or "", a, v in constants) for v, a in slots if isinstance(v, ir.Value) and a is not None
        ]
        notes = [r for slot in slots for r in axes.approximate.get(slot, ())]
        prunable.append(Group(name, int(free.sum()), ranked, members, not notes, notes))
    return prunable, blocked


def _name(slots: list[tuple[ir.Value, int]], order: dict[Slot, int], used: dict[str, int]) -> str:
    """The first weight in order of execution, the producer, as `name:axis`; matrices before vectors."""
    value, axis = min(slots, key=lambda s: (len(tensor_of(s[0]).shape) < 2, order[s]))  # type: ignore[union-attr]
    base = f"{value.name}:{axis}"
    used[base] = used.get(base, 0) + 1
    return base if used[base] == 1 else f"{base}#{used[base]}"
