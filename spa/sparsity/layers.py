"""Layers: the weights that can be thinned out, each as matrices [groups, outputs, inputs].

Inputs stand in the columns. Of a convolution they run tap by tap with the input channels of one tap side by side, so
that neighbours in N:M are neighbouring channels, as hardware wants them, and moving a channel moves whole columns.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spa.calibration import Reader, contractions
from spa.coupling.axes import Op
from spa.coupling.prepare import COPY
from spa.shapes import tensor_of

if TYPE_CHECKING:
    from spa.coupling import Coupling

Array = npt.NDArray[Any]
Matrix = npt.NDArray[np.float64]

# operator -> where its weights are; each kind of view below
WEIGHTS = {
    "Conv": (1,),
    "FusedConv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (1,),
    "FusedGemm": (1,),
    "MatMul": (1, 0),
    "FusedMatMul": (1,),
    "Attention": (1,),  # com.microsoft: the packed projection
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
    "Gather": (0,),  # embeddings, on request
}


@dataclass(frozen=True)
class View:
    """array.reshape(split).transpose(order).reshape(groups, rows, cols)"""

    split: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, int, int]
    taps: int = 1

    def matrix(self, array: Array) -> Matrix:
        """[groups, rows, cols]"""
        return array.astype(np.float64).reshape(self.split).transpose(self.order).reshape(self.shape)

    def tensor(self, matrix: npt.NDArray[Any], like: Array) -> Array:
        """The inverse of `matrix`, of the shape and type of `like`."""
        turned = matrix.reshape([self.split[a] for a in self.order]).transpose(np.argsort(self.order))
        return np.ascontiguousarray(turned.reshape(like.shape)).astype(like.dtype)


@dataclass(eq=False)
class Layer:
    """A constant weight and the op that contracts its columns with `x`."""

    op: Op
    slot: int  # of the weight among the op's inputs
    weight: ir.Value
    name: str  # of the weight, as plans call it
    view: View
    uses: int  # how many operands of nodes it is, altogether
    depthwise: bool = False
    reader: Reader | None = field(default=None, repr=False)

    @property
    def node(self) -> str:
        return self.op.node.name or self.op.out.name or ""

    @property
    def groups(self) -> int:
        return self.view.shape[0]

    @property
    def cols(self) -> int:
        return self.view.shape[2]

    @property
    def size(self) -> int:
        return math.prod(self.view.shape)

    @property
    def alone(self) -> bool:
        """Is there but one node that reads the weight?"""
        return self.uses == 1

    @property
    def order(self) -> npt.NDArray[np.int64]:
        """Of the columns, in terms of the reader's features (channel, then tap)."""
        return np.arange(self.cols).reshape(-1, self.view.taps).T.reshape(-1)


def layers(coupling: Coupling) -> list[Layer]:
    """Every contraction with a constant floating-point weight, in order of execution; embeddings too."""
    found: dict[ir.Value, Layer] = {}
    known = {r.weight: r for r in reversed(contractions(coupling))}
    names = Counter(coupling.constants.values())  # a local function's weight stands once per call
    for op in coupling.ops:
        for slot in WEIGHTS.get(op.kind, ()):
            weight = op.input(slot)
            tensor = tensor_of(weight)
            if weight is None or tensor is None or weight in found or COPY in weight.meta:
                continue
            name = coupling.constants.get(weight)
            if name is None or not tensor.dtype.is_floating_point() or tensor.dtype.bitwidth < 16:
                continue
            if any(op.shapes.shape.get(v) is None for v in (*op.inputs, op.out) if v is not None):
                continue
            view = view_of(op, slot, tuple(tensor.shape.numpy()))
            if view is None or math.prod(view.shape) != tensor.size:
                continue
            layer = Layer(op, slot, weight, name, view, len(weight.uses()) * names[name])
            layer.depthwise = "Conv" in op.kind and view.taps == view.shape[2] and layer.groups > 1
            reader = known.get(weight)
            if reader is not None and (reader.groups, reader.features) == (layer.groups, layer.cols):
                layer.reader = reader
            found[weight] = layer
            if op.kind == "MatMul":
                break  # of two constants one is enough
    return list(found.values())


def view_of(op: Op, slot: int, shape: tuple[int, ...]) -> View | None:
    """How the weight of an op is read as matrices; None where it is not."""
    split: tuple[int, ...]
    match op.kind:
        case "Conv" | "FusedConv" if len(shape) > 2:
            groups, taps = int(op.attr("group", 1)), math.prod(shape[2:])
            split = (groups, shape[0] // groups, shape[1], taps)
            return View(split, (0, 1, 3, 2), (groups, split[1], taps * shape[1]), taps)
        case "ConvTranspose" if len(shape) > 2:
            groups, taps = int(op.attr("group", 1)), math.prod(shape[2:])
            split = (groups, shape[0] // groups, shape[1] * taps)
            return View(split, (0, 2, 1), (groups, split[2], split[1]))
        case "Gemm" | "FusedGemm" if len(shape) == 2:
            turned = (0, 1) if op.attr("transB", 0) else (1, 0)
            return View(shape, turned, (1, shape[turned[0]], shape[turned[1]]))
        case "FusedMatMul" | "Attention" if len(shape) == 2:
            turned = (0, 1) if op.attr("transB", 0) else (1, 0)
            return View(shape, turned, (1, shape[turned[0]], shape[turned[1]]))
        case "MatMul" if len(shape) >= 2:
            lead, order = math.prod(shape[:-2]), (0, 2, 1) if slot == 1 else (0, 1, 2)
            split = (lead, *shape[-2:])
            return View(split, order, (lead, split[order[1]], split[order[2]]))
        case "LSTM" | "GRU" | "RNN" if len(shape) == 3:
            return View(shape, (0, 1, 2), (shape[0], shape[1], shape[2]))
        case "Gather" if len(shape) == 2 and not op.attr("axis", 0):
            return View(shape, (0, 1), (1, shape[0], shape[1]))
    return None
