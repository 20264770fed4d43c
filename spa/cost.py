"""What a network costs: parameters, multiply-accumulates, bytes, peak activation memory; whole and per layer.

Multiply-accumulates are those of contractions (convolutions, matrix products, recurrent cells): one per weight and
position it is applied to. Element-wise work, pooling and normalisation count none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spa.cost_table import CostTable, Row
from spa.coupling.axes import Op, Slot
from spa.coupling.prepare import inlined
from spa.model import Model
from spa.shapes import free_symbols, infer, tensor_of

if TYPE_CHECKING:
    from spa.coupling.analysis import Coupling, Mask


@dataclass(frozen=True)
class Layer:
    """One node that has weights or multiplies."""

    name: str
    op: str
    params: int
    macs: int
    bytes: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """Totals of a network; `bytes` of all its constants, `peak_activation_bytes` with every tensor freed after its last use."""

    params: int
    macs: int
    bytes: int
    peak_activation_bytes: int
    layers: list[Layer] = field(default_factory=list)

    def _repr_html_(self) -> str:
        from spa.report.notebook import cost

        return cost(self)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


DECODERS = ("DequantizeLinear", "Cast", "Reshape", "Transpose", "Slice")  # of a constant: no layers of their own


def mac_terms(op: Op) -> list[list[Slot]]:
    """Axes whose sizes multiply to multiply-accumulates, one list per contraction; none where the node has none."""
    y = op.out
    out: list[Slot] = [(y, a) for a in range(len(op.shape(y)))]
    match op.kind:
        case "Conv" | "FusedConv" | "QLinearConv" | "ConvInteger":
            w = op.inputs[3 if op.kind == "QLinearConv" else 1]
            return [[*out, *((w, a) for a in range(1, len(op.shape(w))))]]
        case "ConvTranspose":
            x, w = op.inputs[0], op.inputs[1]
            return [[*((x, a) for a in range(len(op.shape(x)))), *((w, a) for a in range(1, len(op.shape(w))))]]
        case "Gemm" | "FusedGemm":
            return [[*out, (op.inputs[0], 0 if op.attr("transA", 0) else 1)]]
        case "MatMul" | "FusedMatMul" | "QLinearMatMul" | "MatMulInteger":
            a = op.inputs[0]
            rank = len(op.shape(a))
            return [[*out, (a, rank - 2 if op.attr("transA", 0) else rank - 1)]]
        case "LSTM" | "GRU" | "RNN":
            x = op.inputs[0]  # steps and batch, times the input weights and the recurrent ones
            return [[(x, 0), (x, 1), *((w, a) for a in range(3))] for w in op.inputs[1:3]]
    return []


def inspect(model: Model, sizes: dict[str, int] | None = None) -> Cost:
    """The cost at the given sizes; symbolic leading axes count as 1, others as in `spa.shapes.SIZES`."""
    model = inlined(model)
    given = {s: 1 for s, lead in free_symbols(model.ir, sizes or {}).items() if lead} | (sizes or {})
    shapes = infer(model.ir, given)
    opsets = dict(model.ir.opset_imports)
    layers, seen = [], set[ir.Value | None]()
    decoded: dict[ir.Value, tuple[int, int]] = {}  # what a decoded weight holds, for the layer that reads it
    nodes = list(model.ir.graph.all_nodes())
    for node in nodes:
        op = Op(node, shapes, opsets.get(node.domain, 1))
        if any(shapes.shape.get(v) is None for v in [*node.inputs, *node.outputs] if v is not None and v.name):
            macs = 0
        else:
            macs = sum(math.prod(_size(op, s) for s in slots) for slots in mac_terms(op))
        params = size = 0
        for v in node.inputs:
            if v is not None and v in decoded:
                more, bytes_ = decoded.pop(v)
                params, size = params + more, size + bytes_
            tensor = tensor_of(v)
            if tensor is not None and v not in seen and tensor.size > 1:
                seen.add(v)
                size += tensor.nbytes
                params += tensor.size if is_parameter(tensor) else 0
        if node.op_type in DECODERS and all(v is None or v in seen or tensor_of(v) is not None for v in node.inputs):
            seen.add(node.outputs[0])
            decoded[node.outputs[0]] = params, size
        elif params or macs:
            layers.append(
                Layer(
                    node.name or node.outputs[0].name or "",
                    node.op_type,
                    params,
                    macs,
                    size,
                    shapes.shape.get(node.outputs[0]) or (),
                )
            )
    tensors = [t for v in shapes.shape if (t := tensor_of(v)) is not None]
    return Cost(
        params=sum(t.size for t in tensors if is_parameter(t)),
        macs=sum(layer.macs for layer in layers),
        bytes=sum(t.nbytes for t in tensors),
        peak_activation_bytes=peak(model.ir.graph, shapes.shape, shapes.dtype, seen),
        layers=layers,
    )


def _size(op: Op, slot: Slot) -> int:
    value, axis = slot
    assert isinstance(value, ir.Value) and axis is not None
    return op.shape(value)[axis]


def is_parameter(tensor: ir.TensorProtocol) -> bool:
    """Floating-point, or an integer of at most 8 bits: a quantised weight."""
    dtype = tensor.dtype
    return dtype.is_floating_point() or (dtype.is_integer() and dtype.bitwidth <= 8)


def peak(
    graph: ir.Graph,
    shapes: dict[ir.Value, tuple[int, ...] | None],
    dtypes: dict[ir.Value, int],
    constant: Collection[ir.Value | None] = (),
) -> int:
    """Bytes of live activations at the worst moment, nodes run in their order, inputs and outputs counted; `constant`
    values are weights."""

    def size(v: ir.Value) -> int:
        return (
            math.prod(shapes.get(v) or ()) * max(1, ir.DataType(dtypes[v]).bitwidth // 8)
            if v in dtypes and shapes.get(v)
            else 0
        )

    readers = Counter(v for node in graph for v in node.inputs if v is not None)
    readers.update(graph.outputs)
    live = sum(size(v) for v in graph.inputs if v not in graph.initializers.values())
    top = live
    for node in graph:
        if node.op_type == "Constant" or node.outputs[0] in constant:
            continue
        live += sum(size(v) for v in node.outputs if readers[v])
        top = max(top, live)
        for v in node.inputs:
            if v is None:
                continue
            readers[v] -= 1
            if not readers[v] and tensor_of(v) is None and v not in constant:
                live -= size(v)
    return top


class Products:
    """Numbers that are products of axes' sizes, evaluated together: `fixed` times the sizes of the dims in a row."""

    def __init__(self, coupling: Coupling, terms: list[tuple[float, list[Slot]]]) -> None:
        of, size = coupling.dims.of, coupling.axes.add
        width = max((len(slots) for _, slots in terms), default=0)
        self.index = np.full((len(terms), width), len(coupling.dims.size))  # the last: a size of 1
        self.fixed = np.empty(len(terms))
        for i, (each, slots) in enumerate(terms):
            dims = [of[s] for s in slots if s in of]
            self.index[i, : len(dims)] = dims
            self.fixed[i] = each * math.prod(size(s) for s in slots if s not in of)

    def at(self, sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        found: npt.NDArray[np.float64] = self.fixed * sizes[self.index].prod(1)
        return found


class Budget:
    """The cost of a coupling's network once channels are gone, without touching the graph."""

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        terms: dict[str, list[tuple[float, list[Slot]]]] = {"macs": [], "params": [], "bytes": []}
        self.owners: dict[str, Owners] = {kind: [] for kind in terms}  # the weight of each term
        self.shaped = [
            op
            for op in coupling.ops
            if all(
                coupling.shapes.shape.get(v) is not None for v in [*op.inputs, *op.outputs] if v is not None and v.name
            )
        ]
        for op in self.shaped:
            for product in mac_terms(op):
                terms["macs"].append((1, product))
                self.owners["macs"].append(owner(op, product))
        for value in coupling.constants:
            tensor, shape = tensor_of(value), coupling.shapes.shape.get(value) or ()
            if tensor is not None:
                slots: list[Slot] = [(value, a) for a in range(len(shape))]
                terms["bytes"].append((tensor.dtype.bitwidth / 8, slots))
                self.owners["bytes"].append(value)
                if is_parameter(tensor):
                    terms["params"].append((1, slots))
                    self.owners["params"].append(value)
        self.terms = {kind: Products(coupling, listed) for kind, listed in terms.items()}
        self.tables: dict[CostTable, list[tuple[Row, Products, npt.NDArray[np.int64], Owners]]] = {}

    def of(self, kind: str | CostTable, gone: dict[int, Mask], shares: Mapping[ir.Value, float] | None = None) -> float:
        """Total of `kind` (macs, params, bytes, or what a target's table says) with the indices in `gone` removed, and
        of the layers of the weights in `shares` only that share counted."""
        sizes: npt.NDArray[np.float64] = np.array([*self.coupling.dims.size, 1], np.float64)
        for dim, mask in gone.items():
            sizes[dim] -= mask.sum()
        if isinstance(kind, str):
            return float((self.terms[kind].at(sizes) * weighting(self.owners[kind], shares)).sum())
        if kind not in self.tables:
            self.tables[kind] = self.rows(kind)
        total = 0.0
        for row, products, layer, owners in self.tables[kind]:
            cost = row.of(np.bincount(layer, products.at(sizes)).astype(np.float64))
            total += float((cost * weighting(owners, shares)).sum())
        return total

    def rows(self, table: CostTable) -> list[tuple[Row, Products, npt.NDArray[np.int64], Owners]]:
        """Per row of the table: the products that say how much each of its layers does, which layer's they are, and the
        weights of the layers."""
        terms: dict[Row, list[tuple[int, list[Slot]]]] = {}
        for number, op in enumerate(self.shaped):
            if not any(v is not None and v not in self.coupling.shapes.known for v in op.outputs):
                continue  # computed beforehand
            row = table.row(op.kind, depthwise(op))
            if row is None:
                continue
            out: list[list[Slot]] = [[(op.out, a) for a in range(len(op.shape(op.out)))]]
            for product in mac_terms(op) or [[(None, None)]] if row.by == "macs" else out:
                terms.setdefault(row, []).append((number, product))
        found = []
        for row, listed in terms.items():
            nothing = (None, None)
            products = Products(
                self.coupling, [(float(nothing not in p), [s for s in p if s != nothing]) for _, p in listed]
            )
            numbers, layer = np.unique([n for n, _ in listed], return_inverse=True)
            owners = [owner(self.shaped[n], []) for n in numbers]
            found.append((row, products, layer, owners))
        return found


Owners = list[ir.Value | None]


def owner(op: Op, product: Sequence[Slot]) -> ir.Value | None:
    """The constant that a contraction multiplies with: that of the product's axes, or else the first matrix of the op."""
    matrices = [v for v in op.inputs if tensor_of(v) is not None and len(op.shape(v)) > 1]
    own = [v for v, _ in product if isinstance(v, ir.Value) and v in matrices]
    return next(iter([*own, *matrices]), None)


def weighting(owners: Owners, shares: Mapping[ir.Value, float] | None) -> npt.NDArray[np.float64] | float:
    """Per term the share that counts."""
    return np.array([shares.get(v, 1.0) if v is not None else 1.0 for v in owners]) if shares else 1.0


def depthwise(op: Op) -> bool:
    return op.kind == "Conv" and op.attr("group", 1) > 1 and op.shape(op.inputs[1])[1] == 1
