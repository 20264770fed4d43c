"""Which tensor of a PyTorch network is which value of its ONNX export.

Exporters keep most names, but not all: the weight of a Linear read by a MatMul is stored transposed as
`onnx::MatMul_12` or `val_32`, a PReLU's slope gets axes of length 1, a recurrent layer's matrices are stacked with
their gates in another order. A tensor is found, in this order, by

1. its name: a constant, or what an Identity makes of one (equal tensors are stored once);
2. its numbers: the one constant that holds them, as they are, transposed or with axes of length 1;
3. the gates of a recurrent layer, reordered (torch: i f g o and r z n; ONNX: i o f c and z r h);
4. its siblings: the vectors of a normalisation share their channels.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spa.coupling import Coupling
from spa.coupling.analysis import Mask
from spa.coupling.prepare import COPY
from spa.shapes import tensor_of

Array = npt.NDArray[Any]
Index = npt.NDArray[np.int64]
Cut = dict[int, Mask]  # axis -> which indices go

# torch's gate k is ONNX's gate GATES[kind][k]
GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
RECURRENT = re.compile(r"(?:.*\.)?weight_ih_l\d+(_reverse)?")


@dataclass(frozen=True, eq=False)
class Twin:
    """Axis k of the tensor is axis `axes[k]` of the ONNX value, -1 where that has none.

    `rows`: index i of axis 0 is index `rows[i]` there, in direction `plane` of a recurrent layer. `own`: does the value
    hold the tensor's numbers, or do they only share their channels?
    """

    value: str
    axes: tuple[int, ...]
    rows: Index | None = None
    plane: int = 0
    own: bool = True

    def cut(self, gone: Mapping[int, Mask]) -> Cut:
        """Masks along the value's axes, as masks along the tensor's."""
        found = {k: gone[a] for k, a in enumerate(self.axes) if a in gone}
        if self.rows is not None and 0 in found:
            found[0] = found[0][self.rows]
        return found

    def add_to(self, into: Array, array: Array) -> None:
        """Add the tensor's numbers to an array of the value's shape."""
        if self.rows is not None:
            into[self.plane][self.rows] += array
            return
        order = [k for k in sorted(range(len(self.axes)), key=lambda k: self.axes[k]) if self.axes[k] >= 0]
        rest = [k for k in range(len(self.axes)) if self.axes[k] < 0]  # axes of length 1
        into += array.transpose(rest + order).reshape(into.shape)


Names = dict[str, Twin]


def match(coupling: Coupling, state: Mapping[str, Array]) -> Names:
    """The twin of every tensor that has one. `state`: name -> array, as in a state dict."""
    found = by_name(coupling, state)
    claimed = {t.value for t in found.values()}
    for step in (by_numbers, by_gates, by_siblings):
        left = {n: a for n, a in state.items() if n not in found and a.ndim and a.dtype.kind == "f"}
        found |= step(coupling, left, found, claimed)
        claimed |= {t.value for t in found.values()}
    return found


def by_name(coupling: Coupling, state: Mapping[str, Array]) -> Names:
    values = named(coupling)
    found = {}
    for name, array in state.items():
        value = values.get(name)
        shape = coupling.shapes.shape.get(value) if value is not None else None
        if value is None or shape is None:
            continue
        axes = align(array.shape, shape)
        if axes == (0, 1) and array.shape[0] == array.shape[1] and is_transposed(value, array):
            axes = (1, 0)
        if axes is not None:
            found[name] = Twin(value.name or "", axes)
    return found


def named(coupling: Coupling) -> dict[str, ir.Value]:
    """Name -> value, for constants and what Identity makes of them; of a filler's copies the one that is read as such."""
    found = {name: value for value, name in coupling.constants.items() if COPY not in value.meta}
    for value in coupling.constants:
        original = value.meta.get(COPY)
        readers = {node.op_type for node, _ in value.uses()}
        if isinstance(original, ir.Value) and original.name and readers != {"Identity"}:
            if original.name in found and COPY in found[original.name].meta:
                if not same_dims(coupling, found[original.name], value):
                    found.pop(original.name)  # read by several layers: a name says nothing here
            else:
                found[original.name] = value
    for op in coupling.ops:
        if op.kind == "Identity" and op.inputs[0] is not None and root(op.out) in coupling.constants:
            found.setdefault(op.out.name or "", op.out)
    return found


def root(value: ir.Value) -> ir.Value:
    """What a chain of Identity nodes began with."""
    node = value.producer()
    while node is not None and node.op_type == "Identity" and not node.domain and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def same_dims(coupling: Coupling, a: ir.Value, b: ir.Value) -> bool:
    rank = len(coupling.shapes.shape.get(a) or ())
    of = coupling.dims.of
    return all(of.get((a, i)) == of.get((b, i)) for i in range(rank))


def is_transposed(value: ir.Value, array: Array) -> bool:
    tensor = tensor_of(value)
    if tensor is None:
        return False
    numbers = tensor.numpy()
    return np.array_equal(numbers, array.T) and not np.array_equal(numbers, array)


def align(shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...] | None:
    """Which axis of `other` each axis of `shape` is, where they differ in axes of length 1 alone; None where in more.

    >>> align((12,), (1, 12, 1, 1)), align((4, 1, 3), (4, 3)), align((2, 3), (3, 2))
    ((1,), (0, -1, 1), None)
    """
    if shape == other:
        return tuple(range(len(shape)))
    if [n for n in shape if n != 1] != [n for n in other if n != 1]:
        return None
    places = iter([a for a, n in enumerate(other) if n != 1])
    return tuple(next(places) if n != 1 else -1 for n in shape)


def uniform(array: Array) -> bool:
    """One number throughout."""
    return bool(array.size == 0 or (array == array.reshape(-1)[0]).all())


def digest(array: Array) -> tuple[tuple[int, ...], bytes]:
    shape = tuple(n for n in array.shape if n != 1)
    data = np.ascontiguousarray(array, dtype=np.float32)
    return shape, hashlib.sha256(data.data).digest()


def by_numbers(coupling: Coupling, state: Mapping[str, Array], found: Names, claimed: set[str]) -> Names:
    if not state:
        return {}
    sizes = {tuple(sorted(n for n in a.shape if n != 1)) for a in state.values()}
    holders: dict[tuple[tuple[int, ...], bytes], list[ir.Value]] = {}
    for value in coupling.constants:
        tensor, shape = tensor_of(value), coupling.shapes.shape.get(value)
        if tensor is None or shape is None or value.name in claimed or not tensor.dtype.is_floating_point():
            continue
        if tuple(sorted(n for n in shape if n != 1)) in sizes:
            holders.setdefault(digest(tensor.numpy()), []).append(value)
    asked = Counter(digest(a) for a in state.values() if uniform(a))
    names: Names = {}
    for name, array in state.items():
        for turned in (False, True) if array.ndim == 2 else (False,):
            given = array.T if turned else array
            key = digest(given)
            values = holders.get(key, [])
            if not values or any(not same_dims(coupling, values[0], v) for v in values[1:]):
                continue  # none, or several whose channels are not the same: the numbers do not tell
            if uniform(array) and (COPY in values[0].meta or asked[key] > 1):
                continue  # one number throughout tells little, where others look the same nothing
            axes = align(given.shape, coupling.shapes.shape[values[0]] or ())
            if axes is not None:
                names[name] = Twin(values[0].name or "", axes[::-1] if turned else axes)
                break
    return names


def by_gates(coupling: Coupling, state: Mapping[str, Array], found: Names, claimed: set[str]) -> Names:
    names: Names = {}
    inputs = {n: m for n in state if (m := RECURRENT.fullmatch(n))}
    for op in coupling.ops if inputs else ():
        if op.kind not in GATES or any(tensor_of(v) is None for v in op.inputs[1:3]):
            continue
        units = op.shape(op.inputs[2])[2]
        rows = (np.array(GATES[op.kind])[:, None] * units + np.arange(units)).reshape(-1)
        stacked, recurrent = (np.asarray(tensor_of(v).numpy()) for v in op.inputs[1:3])  # type: ignore[union-attr]
        bias = op.input(3)
        for name in inputs:
            other = name.replace("weight_ih", "weight_hh")
            for plane in range(len(stacked)):
                pair = zip((name, other), (stacked, recurrent), strict=True)
                if other not in state or any(not equal_rows(state[n], m[plane], rows) for n, m in pair):
                    continue
                for key, value in zip((name, other), op.inputs[1:3], strict=True):
                    names[key] = Twin(value.name or "", (1, 2), rows, plane)  # type: ignore[union-attr]
                for part, key in enumerate(("bias_ih", "bias_hh")):
                    key = name.replace("weight_ih", key)
                    if bias is not None and key in state:
                        names[key] = Twin(bias.name or "", (1,), rows + part * len(rows), plane)
    return names


def equal_rows(array: Array, stacked: Array, rows: Index) -> bool:
    return array.shape == stacked.shape and np.array_equal(array, stacked[rows])


def by_siblings(coupling: Coupling, state: Mapping[str, Array], found: Names, claimed: set[str]) -> Names:
    names: Names = {}
    for name, array in state.items():
        prefix = name.rpartition(".")[0]
        family = [n for n in (*state, *found) if n.rpartition(".")[0] == prefix]
        normal = {"weight", "bias", "running_mean", "running_var"} >= {n.rpartition(".")[2] for n in family} - {
            "num_batches_tracked"
        }
        twins = [found[n] for n in family if n in found and len(found[n].axes) == 1]
        vectors = all(len(found[n].axes) < 2 for n in family if n in found)
        if array.ndim == 1 and normal and vectors and twins:
            names[name] = replace(twins[0], own=False)
    return names
