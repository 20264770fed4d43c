"""How a quantised weight stands in the graph: its codes, and DequantizeLinear in front of whoever reads it.

1. one scale, or one per index of an axis of the weight: DequantizeLinear on the weight as it lies
2. groups along the channels of a tap, opset 21: the same, blocked along that axis
3. other groups: the codes lie as [groups, columns of a group], one scale per row; Reshape (Slice, Transpose) after it
4. on request, for one matrix in MatMul or Gemm and groups of a size that onnxruntime knows: MatMulNBits instead

4-bit codes need opset 21; where the network is below, they are stored in bytes. DequantizeLinear per axis needs opset 13.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from spa.model import Model, load
from spa.passes import edit
from spa.sparsity.formats.encoding import Array, Coded, Grid, pack_bits
from spa.sparsity.layers import View

BLOCKED, PER_AXIS = 21, 13  # opsets
INT4_IR = 10  # the ir_version that has 4-bit types
MICROSOFT = "com.microsoft"
NBITS_GROUPS = (16, 32, 64, 128, 256)
FOUR_BITS = {True: ir.DataType.INT4, False: ir.DataType.UINT4}


def raised(model: Model, opset: int) -> Model | None:
    """The network at an opset that is at least this, where ONNX's converter knows how and the numbers stay; else None."""
    if model.ir.opset_imports.get("", 1) >= opset:
        return model
    from spa.verification import verify

    try:
        proto = onnx.version_converter.convert_version(model.to_proto(), opset)
        onnx.checker.check_model(proto)
        proto.ir_version = max(proto.ir_version, INT4_IR if opset >= BLOCKED else 7)
        new = Model(load(proto).ir, model.source, list(model.notes))
        return new if verify(model, new).ok else None
    except Exception:  # the converter raises many kinds; each means that it does not know this network
        return None


@dataclass
class Placement:
    """Operands and attributes of DequantizeLinear, and the steps (operator, arguments) from there to the weight."""

    codes: Array
    scale: Array
    zero: Array | None
    attributes: dict[str, int] = field(default_factory=dict)
    steps: list[tuple[str, list[list[int]]]] = field(default_factory=list)


def place(view: View, coded: Coded, shape: tuple[int, ...], opset: int) -> Placement:
    """Where the matrix [groups * rows, cols] of a view goes, for a weight of this shape."""
    grid = coded.grid
    assert grid is not None
    split = [view.split[a] for a in view.order]
    back = [int(i) for i in np.argsort(view.order)]
    total, cols = coded.shape
    channels = cols // view.taps

    def lying(matrix: Array, width: int) -> Array:
        """A matrix whose columns are `width` channels wide each, as the weight lies."""
        few = [*split[:-1], split[-1] // width]
        small = [n // width if a == along and width > 1 else n for a, n in enumerate(shape)]
        return np.ascontiguousarray(matrix.reshape(few).transpose(back).reshape(small))

    axis = next((a for a, n in enumerate(shape) if n == total and _runs(view, shape, a)[0]), None)
    along = next((a for a, n in enumerate(shape) if n == channels and _runs(view, shape, a)[1]), None)
    if grid.scale.size == 1:
        return Placement(lying(coded.codes, 1), *_steps(grid, lambda a: a.reshape(())))
    if grid.scale.shape == (total, 1) and axis is not None:
        return Placement(lying(coded.codes, 1), *_steps(grid, lambda a: a.reshape(-1)), {"axis": axis})
    fits = along is not None and channels % grid.group == 0 and len(grid.scale) == total
    if opset >= BLOCKED and fits and along is not None:
        steps = _steps(grid, lambda a: lying(a, grid.group))
        return Placement(lying(coded.codes, 1), *steps, {"axis": along, "block_size": grid.group})
    groups = grid.scale.shape[1]
    codes = np.pad(coded.codes, ((0, 0), (0, groups * grid.group - cols))).reshape(-1, grid.group)
    found = Placement(codes, *_steps(grid, lambda a: np.broadcast_to(a, (total, groups)).reshape(-1)), {"axis": 0})
    if groups * grid.group > cols:
        found.steps += [("Reshape", [[total, groups * grid.group]]), ("Slice", [[0], [cols], [1]])]
    if back != sorted(back):
        found.steps += [("Reshape", [split]), ("Transpose", [back])]
    if back == sorted(back) or [split[a] for a in back] != list(shape):
        found.steps.append(("Reshape", [list(shape)]))
    return found


def _runs(view: View, shape: tuple[int, ...], axis: int) -> tuple[bool, bool]:
    """Is the index along this axis of the weight the row of the matrix? Is it the channel of its columns?"""
    index = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    split = np.broadcast_to(index, shape).reshape(view.split).transpose(view.order)
    matrix = split.reshape(-1, view.shape[2])
    channel = np.arange(matrix.shape[1]) % (matrix.shape[1] // view.taps)
    row = np.arange(len(matrix))[:, None]
    return np.array_equal(matrix, np.broadcast_to(row, matrix.shape)), bool((matrix == channel).all())


def _steps(grid: Grid, turn: Any) -> tuple[Array, Array | None]:
    return turn(grid.scale), None if grid.zero is None else turn(grid.zero)


def dequantize(model: ir.Model, weight: ir.Value, view: View, coded: Coded) -> None:
    """Let everyone who reads `weight` read its quantised form. The last node takes over the weight's name."""
    grid, name, taken = coded.grid, weight.name or "", edit.taken_names(model)
    assert grid is not None and weight.const_value is not None
    opset = model.opset_imports.get("", 1)
    shape = tuple(weight.const_value.shape.numpy())
    found = place(view, coded, shape, opset)
    first, made = next(iter(model.graph)), list[ir.Node]()

    def constant(array: Array, label: str, narrow: bool = False) -> ir.Value:
        label = edit.unique_name(taken, f"{name}/{label}")
        tensor: ir.TensorProtocol = ir.tensor(array, name=label)
        if narrow and grid.bits == 4 and opset >= BLOCKED:
            packed = pack_bits(array.reshape(-1), 4)
            tensor = ir.PackedTensor(packed, FOUR_BITS[grid.signed], shape=ir.Shape(array.shape), name=label)
        return edit.add_constant(model, first, tensor)

    def node(kind: str, inputs: list[ir.Value], **attributes: Any) -> ir.Value:
        made.append(ir.node(kind, inputs, attributes, name=edit.unique_name(taken, f"{name}/{kind}")))
        made[-1].outputs[0].name = edit.unique_name(taken, f"{name}/{kind}:out")
        return made[-1].outputs[0]

    operands = [constant(found.codes, "codes", True), constant(found.scale, "scale")]
    if found.zero is not None:
        operands.append(constant(found.zero, "zero_point", True))
    out = node("DequantizeLinear", operands, **found.attributes)
    for kind, arguments in found.steps:
        turn = kind == "Transpose"
        operands = [] if turn else [constant(np.array(a, np.int64), kind) for a in arguments]
        out = node(kind, [out, *operands], **({"perm": arguments[0]} if turn else {}))
    model.graph.insert_before(first, made)
    weight.replace_all_uses_with(out)
    model.graph.initializers.pop(name)
    out.name, out.type, out.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)


def nbits_fits(node: ir.Node, weight: ir.Value, view: View, encoding_group: int | str) -> bool:
    """Could this node be a MatMulNBits?"""
    if encoding_group not in NBITS_GROUPS or view.shape[0] != 1 or view.taps != 1 or len(weight.uses()) != 1:
        return False
    if edit.is_onnx(node, "MatMul"):
        return node.inputs[1] is weight and len(view.split) <= 3
    plain = all(edit.attribute(node, k, d) == d for k, d in (("alpha", 1.0), ("beta", 1.0), ("transA", 0)))
    return edit.is_onnx(node, "Gemm") and plain and node.inputs[1] is weight


def matmul_nbits(model: ir.Model, node: ir.Node, weight: ir.Value, coded: Coded) -> None:
    """MatMul or Gemm -> com.microsoft MatMulNBits: codes [N, groups, bytes] without sign, zero point 2^(bits - 1) where
    there is none; a Gemm's C becomes an Add."""
    grid, name, taken = coded.grid, weight.name or "", edit.taken_names(model)
    assert grid is not None and node.graph is not None
    rows, cols = coded.shape
    groups = grid.scale.shape[1]
    codes = coded.codes.astype(np.int16) + (1 << grid.bits - 1 if grid.signed else 0)
    filled = np.pad(codes, ((0, 0), (0, groups * grid.group - cols))).astype(np.uint8).reshape(rows, groups, -1)
    packed = pack_bits(filled, 4) if grid.bits == 4 else filled

    def constant(array: Array, label: str) -> ir.Value:
        label = edit.unique_name(taken, f"{name}/{label}")
        return edit.add_constant(model, node, ir.tensor(np.ascontiguousarray(array), name=label))

    inputs = [node.inputs[0], constant(packed, "codes"), constant(grid.scale, "scale")]
    if grid.zero is not None:
        inputs.append(constant(pack_bits(grid.zero, 4) if grid.bits == 4 else grid.zero, "zero_point"))
    attributes = {"K": cols, "N": rows, "bits": grid.bits, "block_size": grid.group}
    model.opset_imports.setdefault(MICROSOFT, 1)
    new = ir.node("MatMulNBits", inputs, attributes, domain=MICROSOFT, name=node.name)
    made, out, old = [new], new.outputs[0], node.outputs[0]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        out.name = edit.unique_name(taken, f"{old.name}/product")
        made.append(ir.node("Add", [out, node.inputs[2]], name=edit.unique_name(taken, f"{node.name}/bias")))
        out = made[-1].outputs[0]
    out.shape, out.type = old.shape, old.type
    node.graph.insert_before(node, made)
    old.replace_all_uses_with(out, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)
    out.name = old.name
    model.graph.initializers.pop(name)
