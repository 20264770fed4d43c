"""Shape arithmetic that is fixed whatever the data: `Shape -> Gather / Slice / Squeeze / Concat` chains.

A small integer tensor is followed entry by entry: an `int` is known for certain, a `str` is a symbolic dimension,
None is anything. Only what holds for every input is believed, so the result may replace the nodes (compare
`spa.shapes`, which tells what is *likely* static by trying two sizes).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spa.passes import edit
from spa.passes.edit import attribute, constant, is_onnx

Entries = npt.NDArray[np.object_]  # of int | str | None, rank 0 or 1

INTEGERS = {ir.DataType.INT64: np.int64, ir.DataType.INT32: np.int32}
LIMIT = 64  # entries: longer integer constants are no shapes


def fold_shapes(model: ir.Model, shapes: dict[str, ir.Shape]) -> tuple[int, int]:
    """Replace chains that are known in full by constants, and give Reshape a constant target where it can have one.

    `shapes` are the inferred ones, by value name. Returns how many nodes became constants, and how many Reshapes.
    """
    known: dict[ir.Value, Entries] = {}
    folded = reshaped = 0
    names = edit.taken_names(model)
    for node in list(edit.nodes(model)):
        if is_onnx(node, "Reshape"):
            reshaped += _fix_reshape(model, node, known, shapes, names)
            continue
        entries = _follow(node, known, shapes)
        if entries is None or len(node.outputs) != 1:
            continue
        known[node.outputs[0]] = entries
        dtype = _dtype(node)
        if dtype in INTEGERS and all(isinstance(e, int) for e in entries.flat):
            edit.replace_by_constants(model, node, [ir.tensor(entries.astype(INTEGERS[dtype]))])
            folded += 1
    return folded, reshaped


def _dtype(node: ir.Node) -> ir.DataType | None:
    """Of the one output: what the chain carries is int64 unless a Cast says otherwise."""
    if is_onnx(node, "Shape", "Size"):
        return ir.DataType.INT64
    if is_onnx(node, "Cast"):
        return ir.DataType(attribute(node, "to"))
    value = node.inputs[0]
    tensor = constant(value)
    if tensor is not None:
        return tensor.dtype
    producer = value.producer() if value is not None else None
    return _dtype(producer) if producer is not None and is_onnx(producer, *FOLLOWED) else None


def _entries(value: ir.Value | None, known: dict[ir.Value, Entries]) -> Entries | None:
    if value is None:
        return None
    if value in known:
        return known[value]
    tensor = constant(value)
    if tensor is None or tensor.dtype not in INTEGERS or tensor.size > LIMIT or len(tensor.shape) > 1:
        return None
    array = tensor.numpy()
    return np.array(array.tolist(), dtype=object).reshape(array.shape)


def _dims(value: ir.Value | None, shapes: dict[str, ir.Shape]) -> Entries | None:
    shape = shapes.get(value.name or "") if value is not None else None
    if shape is None:
        return None
    dims = [d if isinstance(d, int) else d.value for d in shape]
    return np.array([*dims, None], dtype=object)[:-1]


FOLLOWED = ("Shape", "Size", "Gather", "Slice", "Squeeze", "Unsqueeze", "Concat", "Cast", "Identity")


def _follow(node: ir.Node, known: dict[ir.Value, Entries], shapes: dict[str, ir.Shape]) -> Entries | None:
    """The entries of the node's output, or None where nothing is known of it."""
    if not is_onnx(node, *FOLLOWED) or any(a.is_ref() for a in node.attributes.values()):
        return None
    if is_onnx(node, "Shape", "Size"):
        dims = _dims(node.inputs[0], shapes)
        if dims is None:
            return None
        if node.op_type == "Shape":
            return dims[attribute(node, "start", 0) : attribute(node, "end", len(dims))]
        if not all(isinstance(d, int) for d in dims):
            return None
        return np.array(int(np.prod(dims.astype(np.int64))), dtype=object)
    operands = [_entries(v, known) for v in node.inputs]
    if not operands or any(o is None for o, v in zip(operands, node.inputs, strict=True) if v is not None):
        return None
    try:
        return _structural(node, operands)
    except (IndexError, ValueError, TypeError):
        return None  # an index that is not known, or out of range: onnxruntime will say so better


def _structural(node: ir.Node, operands: list[Any]) -> Entries | None:
    data: Entries = operands[0]
    if is_onnx(node, "Identity"):
        return data
    if is_onnx(node, "Cast"):
        to, fits = ir.DataType(attribute(node, "to")), all(not isinstance(e, int) or abs(e) < 2**31 for e in data.flat)
        return data if to in INTEGERS and (fits or to == ir.DataType.INT64) else None
    if is_onnx(node, "Concat"):
        return np.concatenate(operands) if all(o.ndim == 1 for o in operands) else None
    if is_onnx(node, "Gather"):
        return np.asarray(np.take(data, operands[1].astype(np.int64)), dtype=object) if data.ndim == 1 else None
    if is_onnx(node, "Squeeze", "Unsqueeze"):
        axes = operands[1].tolist() if len(operands) > 1 and operands[1] is not None else attribute(node, "axes")
        if is_onnx(node, "Squeeze"):
            return data.reshape(()) if data.shape == (1,) and axes in (None, [0], [-1], (0,), (-1,)) else None
        return data.reshape(1) if data.ndim == 0 and list(axes) in ([0], [-1]) else None
    if data.ndim != 1:
        return None
    starts, ends, axes, steps = _slice_arguments(node, operands)
    if len(starts) != 1 or list(axes) not in ([0], [-1]) or steps[0] == 0:
        return None
    start, end, step = int(starts[0]), int(ends[0]), int(steps[0])
    if step < 0 and end < -len(data):
        return data[start::step]
    return data[start:end:step]


def _slice_arguments(node: ir.Node, operands: list[Any]) -> tuple[Any, Any, Any, Any]:
    """starts, ends, axes, steps: inputs since opset 10, attributes before."""
    if len(node.inputs) == 1:
        return attribute(node, "starts"), attribute(node, "ends"), attribute(node, "axes", [0]), [1]
    given = [*operands[1:], None, None]
    return (
        given[0],
        given[1],
        [0] if given[2] is None else given[2].tolist(),
        [1] if given[3] is None else given[3],
    )


def _fix_reshape(
    model: ir.Model, node: ir.Node, known: dict[ir.Value, Entries], shapes: dict[str, ir.Shape], names: set[str]
) -> int:
    """Give a Reshape whose target is computed a constant one; 1 where that was possible."""
    target = node.inputs[1] if len(node.inputs) > 1 else None
    if target is None or target not in known or constant(target) is not None or known[target].ndim != 1:
        return 0
    fixed = constant_target(known[target].tolist(), _dims(node.inputs[0], shapes), attribute(node, "allowzero", 0))
    if fixed is None:
        return 0
    name = edit.unique_name(names, f"{node.outputs[0].name}_shape")
    node.replace_input_with(1, edit.add_constant(model, node, ir.tensor(np.array(fixed, np.int64), name=name)))
    return 1


def constant_target(entries: list[Any], data: Entries | None, allowzero: int) -> list[int] | None:
    """A target without unknown entries that means the same, if there is one.

    >>> constant_target(["N", 64], None, 0), constant_target(["N", -1], np.array(["N", 3, 4], object), 0)
    ([-1, 64], [0, -1])
    """
    unknown = [i for i, e in enumerate(entries) if not isinstance(e, int)]
    rest = [e for e in entries if isinstance(e, int)]
    if len(unknown) == 1 and all(e > 0 for e in rest):
        return [e if isinstance(e, int) else -1 for e in entries]
    if allowzero or data is None or any(e == 0 for e in rest):
        return None
    copied = [i for i in unknown if isinstance(entries[i], str) and i < len(data) and data[i] == entries[i]]
    if copied != unknown:
        return None
    return [0 if i in copied else e for i, e in enumerate(entries)]
