"""Slice: take removed channels out of every tensor, and let attributes and shape constants follow."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from spa.coupling import Coupling
from spa.coupling.analysis import Mask
from spa.coupling.edit import Edit
from spa.coupling.prepare import give_back
from spa.coupling.rules import table
from spa.model import Model
from spa.pipeline import Result
from spa.shapes import SHAPE_OPS, constants, tensor_of


@dataclass(frozen=True)
class Slice:
    """Choose channels under one budget and take them out; options as those of `spa.planning`."""

    name: ClassVar[str] = "slice"

    ratio: float | None = None
    macs: float | None = None
    params: float | None = None
    size: int | None = None
    latency: float | None = None
    cost_table: str | None = None
    criterion: str = "l2"
    aggregate: str | None = None
    normalise: str | None = None
    scope: str = "auto"
    align: int = 1
    keep: tuple[str, ...] = ()

    def run(self, model: Model) -> Result:
        from spa.planning import plan
        from spa.pruning import apply

        return apply(model, plan(model, **{f.name: getattr(self, f.name) for f in fields(self)}))


def slice_channels(coupling: Coupling, gone: dict[int, Mask]) -> Edit:
    """Cut `coupling.model` in place. `gone[dim]` marks the indices to remove. The `Edit` tells what else changed."""
    edit = Edit(coupling, gone)
    tainted = size_dependent(edit)
    for op in coupling.ops:
        computed = all(v in coupling.shapes.known for v in op.outputs) and bool(op.inputs)
        if computed and not edit.changed(op):
            continue  # a part of a shape chain: its readers get constants, it falls away
        rule = table().get((op.node.domain if op.node.domain != "ai.onnx" else "", op.kind))
        stale = [i for i, v in enumerate(op.inputs) if v in tainted]
        for i in stale:
            known = op.known(i)
            if known is not None:
                for axis in range(known.ndim):  # a state of zeros, say, as wide as the channels that are left
                    known = np.compress(edit.kept_or_all((op.inputs[i], axis)), known, axis=axis)
                edit.connect(op, i, edit.constant(op.node, f"{op.out.name}_was{i}", known))
        if rule is not None and rule.repair is not None and (stale or edit.changed(op)):
            rule.repair(op, edit)
    for value in coupling.constants:
        cut_constant(edit, value)
    for value, shape in coupling.shapes.shape.items():
        if value.shape is not None and shape is not None and len(shape) == len(value.shape):
            refresh_shape(edit, value, shape)
    give_back(coupling.model.ir)
    drop_dead(coupling.model.ir)
    return edit


def size_dependent(edit: Edit) -> set[ir.Value]:
    """Values computed from the size of an axis that shrinks."""
    found: set[ir.Value] = set()
    known = edit.coupling.shapes.known
    for op in edit.coupling.ops:
        shrinks = op.kind in SHAPE_OPS and op.node.domain == "" and edit.changed(op)
        if shrinks or any(v in found for v in op.inputs if v is not None):
            found.update(v for v in op.outputs if v in known)
    return found


def cut_constant(edit: Edit, value: ir.Value) -> None:
    shape = edit.coupling.shapes.shape[value] or ()
    keep = {a: k for a in range(len(shape)) if (k := edit.kept((value, a))) is not None}
    if not keep:
        return
    node = value.producer()
    tensor = node.attributes["value"].as_tensor() if node is not None else value.const_value
    assert tensor is not None
    left = ir.Shape([int(keep[a].sum()) if a in keep else n for a, n in enumerate(shape)])

    def read(tensor: ir.TensorProtocol = tensor) -> ir.Tensor[Any]:
        array = tensor.numpy()
        for axis, mask in keep.items():
            array = np.compress(mask, array, axis=axis)
        return ir.Tensor(np.ascontiguousarray(array), dtype=tensor.dtype, name=tensor.name)

    # large weights are read and cut when they are written
    cut = ir.LazyTensor(read, dtype=tensor.dtype, shape=left, name=tensor.name) if tensor.nbytes > 1 << 20 else read()
    if node is not None:
        node.attributes["value"] = ir.AttrTensor("value", cut)
        value.const_value = None
    else:
        value.const_value = cut
    value.shape = left


def transplant(cut: ir.Model, whole: ir.Model) -> None:
    """Carry the shorter constants of `cut`, whose local functions were expanded, over to `whole`, which kept them."""
    tensors = {name: tensor_of(value) for value, name in constants(cut).items()}
    for value, name in constants(whole).items():
        tensor, old = tensors.get(name), tensor_of(value)
        if tensor is None or old is None or tensor.shape == old.shape:
            continue
        node = value.producer()
        if node is None:
            value.const_value, value.shape = tensor, ir.Shape(tensor.shape.numpy())
        else:
            node.attributes["value"] = ir.AttrTensor("value", tensor)
    shapes = {v.name: v.shape for n in cut.graph.all_nodes() for v in n.outputs}
    for node in whole.graph.all_nodes():
        for value in node.outputs:
            value.shape = shapes.get(value.name)
    for function in whole.functions.values():
        for node in function.all_nodes():
            for value in node.outputs:
                value.shape = None


def refresh_shape(edit: Edit, value: ir.Value, shape: tuple[int, ...]) -> None:
    """What the file says of a value's shape must not outlive the shape."""
    assert value.shape is not None
    kept = {a: k for a in range(len(shape)) if (k := edit.kept((value, a))) is not None}
    if kept and value not in edit.coupling.constants:
        value.shape = ir.Shape(
            [
                int(kept[a].sum()) if a in kept and isinstance(d, int) else None if a in kept else d
                for a, d in enumerate(value.shape)
            ]
        )


def drop_dead(model: ir.Model) -> None:
    """Remove what repair left without readers: shape chains and replaced constants."""
    import onnx_ir.passes.common as common

    common.RemoveUnusedNodesPass()(model)
