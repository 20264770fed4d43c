"""What a network's weights take: in the file, compressed, and packed.

Packed is what a compiled library carries: every weight matrix in the form that takes the fewest bytes
(`spa.sparsity.formats.best`), everything else as it is. Weights behind DequantizeLinear or Cast are packed as the codes
that are stored, with their scales.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from spa.coupling.axes import Op
from spa.coupling.prepare import inlined
from spa.model import Model
from spa.shapes import Shapes, tensor_of
from spa.sparsity.formats import Coded, Grid, best
from spa.sparsity.formats.encoding import Array, unpack_bits
from spa.sparsity.layers import WEIGHTS, View, view_of

CHUNK = 1 << 20


@dataclass(frozen=True)
class Stored:
    """One weight matrix: `size` entries, the nonzero ones, bytes as the file holds it, and packed."""

    node: str
    weight: str
    size: int
    nonzero: int
    bytes: int
    packed_bytes: int
    format: str


@dataclass(frozen=True)
class Storage:
    """`file_bytes` with external data, `gzip_bytes` of the same, `packed_bytes` of all constants."""

    file_bytes: int
    gzip_bytes: int
    packed_bytes: int
    weights: list[Stored] = field(default_factory=list)

    @property
    def sparse(self) -> bool:
        """Is there anything to gain from packing?"""
        return any(w.nonzero < w.size and w.format != "dense" for w in self.weights)

    def totals(self) -> dict[str, int]:
        nonzero = sum(w.nonzero for w in self.weights)
        return {
            "file_bytes": self.file_bytes,
            "gzip_bytes": self.gzip_bytes,
            "packed_bytes": self.packed_bytes,
            "matrix_nonzero": nonzero,
        }

    def of(self, node: str) -> dict[str, Any]:
        """Of the matrices of a node: nonzero entries, their share, packed bytes, formats; empty where it has none."""
        own = [w for w in self.weights if w.node == node]
        if not own:
            return {}
        nonzero, size = sum(w.nonzero for w in own), sum(w.size for w in own)
        return {
            "nonzero": nonzero,
            "density": nonzero / size,
            "packed_bytes": sum(w.packed_bytes for w in own),
            "format": "+".join(dict.fromkeys(w.format for w in own)),
        }


@dataclass
class Spread:
    """A weight as it lies, its codes and what one step of each is worth; scale and zero None where codes are values."""

    codes: Array
    scale: Array | None
    zero: Array | None
    bits: int
    constants: list[ir.Value]

    def each(self, turn: Any) -> Spread:
        scale, zero = (None if a is None else turn(a) for a in (self.scale, self.zero))
        return Spread(turn(self.codes), scale, zero, self.bits, self.constants)


def storage(model: Model) -> Storage:
    """Reads every weight."""
    size, compressed = file_sizes(model)
    graph = inlined(model).ir.graph
    weights, counted = [], set[ir.Value]()
    for node in graph.all_nodes():
        for name, coded, constants in matrices(node):
            if not counted.isdisjoint(constants):
                continue
            counted.update(constants)
            packed = best(coded)
            taken = sum(t.nbytes for v in constants if (t := tensor_of(v)) is not None)
            label, kept = node.name or node.outputs[0].name or "", int(coded.kept.sum())
            weights.append(Stored(label, name, coded.codes.size, kept, taken, packed.bytes, packed.name))
    others = {v for node in graph.all_nodes() for v in node.inputs if v is not None} - counted
    rest = sum(t.nbytes for v in others if (t := tensor_of(v)) is not None)
    return Storage(size, compressed, sum(w.packed_bytes for w in weights) + rest, weights)


def matrices(node: ir.Node) -> Iterator[tuple[str, Coded, list[ir.Value]]]:
    """Name, matrix [outputs, inputs] and the constants behind it, of every weight that a node reads."""
    if node.op_type == "MatMulNBits" and (found := unpack_nbits(node)) is not None:
        yield node.inputs[1].name or "", *found  # type: ignore[union-attr]
    for slot in WEIGHTS.get(node.op_type, ()):
        value = node.inputs[slot] if slot < len(node.inputs) else None
        spread = None if value is None else trace(value)
        if spread is None or value is None:
            continue
        view = view_of(Op(node, Shapes(), node.version or 0), slot, spread.codes.shape)
        if view is not None and view.shape[0] * view.shape[1] * view.shape[2] == spread.codes.size > 0:
            yield value.name or "", gathered(spread, view), spread.constants


def trace(value: ir.Value) -> Spread | None:
    """A weight back to its codes, past DequantizeLinear, Cast and what only moves; None where it is no constant."""
    tensor, node = tensor_of(value), value.producer()
    if tensor is not None:
        plain = tensor.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
        return Spread(tensor.numpy(), None, None, tensor.dtype.bitwidth, [value]) if plain else None
    if node is None or not node.inputs or node.inputs[0] is None:
        return None
    if node.op_type == "DequantizeLinear":
        return dequantized(node)
    rest = [t.numpy() if v is not None and (t := tensor_of(v)) is not None else None for v in node.inputs[1:]]
    source = trace(node.inputs[0]) if node.op_type in ("Cast", "Reshape", "Transpose", "Slice") else None
    if source is None or any(a is None for a in rest):
        return None
    match node.op_type:
        case "Reshape":
            return source.each(lambda a: a.reshape(rest[0]))
        case "Transpose":
            order = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
            return source.each(lambda a: a.transpose(order))
        case "Slice" if len(rest) == 3:
            starts, ends, axes = rest
            cut = {int(x): slice(int(s), int(e)) for s, e, x in zip(starts, ends, axes, strict=True)}  # type: ignore[arg-type]
            return source.each(lambda a: a[tuple(cut.get(i, slice(None)) for i in range(a.ndim))])
    return source if node.op_type == "Cast" else None


def dequantized(node: ir.Node) -> Spread | None:
    tensors = [tensor_of(v) for v in node.inputs if v is not None]
    if any(t is None for t in tensors) or tensors[0].dtype.bitwidth not in (4, 8):  # type: ignore[union-attr]
        return None
    signed = tensors[0].dtype in (ir.DataType.INT8, ir.DataType.INT4)  # type: ignore[union-attr]
    codes = tensors[0].numpy().astype(np.int8 if signed else np.uint8)  # type: ignore[union-attr]
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    group = node.attributes["block_size"].as_int() if "block_size" in node.attributes else 0

    def everywhere(a: Array) -> Array:
        if group:
            a = np.repeat(a, group, axis).take(range(codes.shape[axis]), axis)
        elif a.size > 1:
            a = a.reshape([-1 if i == axis % codes.ndim else 1 for i in range(codes.ndim)])
        return np.broadcast_to(a, codes.shape)

    zero = tensors[2].numpy().astype(codes.dtype) if len(tensors) > 2 else None  # type: ignore[union-attr]
    if zero is not None and not zero.any() and signed:
        zero = None
    if zero is None and not signed:
        zero = np.zeros((), np.uint8)
    scale = everywhere(tensors[1].numpy().astype(np.float32))  # type: ignore[union-attr]
    steps = None if zero is None else everywhere(zero)
    return Spread(codes, scale, steps, tensors[0].dtype.bitwidth, [v for v in node.inputs if v is not None])  # type: ignore[union-attr]


def gathered(spread: Spread, view: View) -> Coded:
    """As the matrix of a view; the grid's groups are as wide as the scales stay the same in all rows."""

    def turned(a: Array) -> Array:
        return a.reshape(view.split).transpose(view.order).reshape(-1, view.shape[2])

    spread = spread.each(turned)
    if spread.scale is None:
        return Coded(spread.codes + spread.codes.dtype.type(0))
    steps = [a for a in (spread.scale, spread.zero) if a is not None]
    changes = np.flatnonzero(np.any([(np.diff(a, axis=1) != 0).any(0) for a in steps], axis=0)) + 1
    cols = spread.codes.shape[1]
    width = int(np.gcd.reduce(changes)) if len(changes) else cols
    few = [a[:, ::width] for a in steps]
    if all((a == a[:1]).all() for a in few):
        few = [a[:1] for a in few]
    bits = 4 if spread.bits == 4 else 8
    return Coded(spread.codes, Grid(bits, width, few[0], few[1] if len(few) > 1 else None))


def unpack_nbits(node: ir.Node) -> tuple[Coded, list[ir.Value]] | None:
    values = [v for v in node.inputs[1:4] if v is not None]
    tensors = [tensor_of(v) for v in values]
    k, n, bits, group = (node.attributes[a].as_int() for a in ("K", "N", "bits", "block_size"))
    if any(t is None for t in tensors) or bits not in (4, 8):
        return None
    packed, scale, *zeros = (t.numpy() for t in tensors if t is not None)
    groups = -(-k // group)
    rows = packed.reshape(n, -1)
    codes = (unpack_bits(rows, 4, groups * group) if bits == 4 else rows)[:, :k].astype(np.uint8)
    if zeros:
        zero = zeros[0].reshape(n, -1)
        zero = unpack_bits(zero, 4, groups) if bits == 4 else zero
    else:
        zero = np.full((n, groups), 1 << bits - 1, np.uint8)
    return Coded(codes, Grid(bits, group, scale.reshape(n, groups), zero.astype(np.uint8))), values


def file_sizes(model: Model) -> tuple[int, int]:
    """Bytes of the model's files, and after gzip (level 6)."""
    if model.source is None:
        pieces = iter([model.to_proto().SerializeToString(deterministic=True)])
    else:
        tensors = (v.const_value for v in model.ir.graph.initializers.values())
        beside = {Path(t.path) for t in tensors if isinstance(t, ir.ExternalTensor)}
        pieces = _read([model.source, *sorted(beside)])
    packer, size, compressed = zlib.compressobj(6, wbits=31), 0, 0
    for piece in pieces:
        size += len(piece)
        compressed += len(packer.compress(piece))
    return size, compressed + len(packer.flush())


def _read(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(CHUNK):
                yield piece
