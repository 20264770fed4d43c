"""How values lie between kernels: decided over the whole network, once it is known which kernels it has.

1. A Transpose (among operators that only give another shape) that alone reads a convolution's or a product's result:
   the kernel writes where it puts things.
2. A Cast between fp16 and fp32 at a kernel: the kernel reads or writes fp16.
3. A value that only products and convolutions read is rounded by them anyway: what makes it rounds (a kernel of TVM's by
   a Cast, which TVM fuses), and half as much is written and read. In a network that is fp16 by itself, the same for all values that only kernels of ours read.

Layers whose operands or results change are offered to the families again. `--precision fp32` leaves out 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx
from onnx import TensorProto, helper

from spa.codegen.cuda.calls import Call, calls_of, rebuilt, tensors_of
from spa.codegen.cuda.layers import CHANNELS_LAST, PRODUCTS
from spa.codegen.cuda.offers import OFFERS
from spa.codegen.cuda.words import BFLOAT, HALF, NARROW, OPERANDS
from spa.codegen.dispatch import Chosen, choose
from spa.codegen.fusion import ALIASES
from spa.codegen.kernels.vector import FLOAT
from spa.codegen.layer import Layer
from spa.codegen.program import Tensor
from spa.codegen.target import Target
from spa.codegen.views import contiguous, reshaped


def settled(chosen: Chosen, target: Target) -> Chosen:
    """The network with these decisions made."""
    if not chosen.kernels:
        return chosen
    net = _Net(chosen, target)
    net.write_transposed()
    net.absorb_casts()
    if target.features[0] != "fp32":
        net.narrow(OPERANDS[target.features[0]])
    return rebuilt(chosen, net.calls, net.dropped, net.casts)


class _Net:
    """The network while it changes: the calls as they are by now, and which nodes are gone."""

    def __init__(self, chosen: Chosen, target: Target) -> None:
        graph = chosen.model.graph
        self.target = target
        self.nodes = list(graph.node)
        self.calls = calls_of(chosen)
        self.dropped: set[int] = set()
        self.casts: dict[int, int] = {}  # nodes that are TVM's -> type that what they write is cast to
        self.tensors = tensors_of(chosen.model)
        self.outputs = {v.name for v in graph.output}
        floats = [v.type.tensor_type.elem_type for v in [*graph.input, *graph.output]]
        floats = [t for t in floats if t in (TensorProto.FLOAT, TensorProto.FLOAT16)]
        self.is_half = bool(floats) and set(floats) == {TensorProto.FLOAT16}

    def readers(self) -> dict[str, list[tuple[int, int]]]:
        """By value: (node, position of the operand)."""
        found: dict[str, list[tuple[int, int]]] = {}
        for at, node in enumerate(self.nodes):
            names: Sequence[str] = self.calls[at].reads if at in self.calls else node.input
            for position, name in enumerate(names if at not in self.dropped else ()):
                found.setdefault(name, []).append((at, position))
        return found

    # 1

    def write_transposed(self) -> None:
        readers = self.readers()
        for at, call in self.calls.items():
            if call.layer.op not in PRODUCTS or call.layer.strides:
                continue
            path = self._moves(call.writes, readers)
            moves = [node for _, node in path]
            if not any(node.op_type == "Transpose" for node in moves):  # another shape costs nothing behind a kernel
                continue
            strides = _strides(moves, call.layer.output.shape, self.tensors)
            if strides is None:
                continue
            again = self._again(call, strides=strides, inputs=_in_rows_of(call.layer))
            if again is None:
                continue
            name = path[-1][1].output[0]
            self.calls[at] = replace(again, writes=name, result=replace(self.tensors[name], dtype=call.result.dtype))
            self.dropped |= {i for i, _ in path}

    def _moves(self, name: str, readers: Mapping[str, list[tuple[int, int]]]) -> list[tuple[int, onnx.NodeProto]]:
        """The operators behind a value that only move its elements, each the only reader of the one before."""
        path: list[tuple[int, onnx.NodeProto]] = []
        while name not in self.outputs and len(readers.get(name, ())) == 1:
            ((at, position),) = readers[name]
            node = self.nodes[at]
            moves = _is_alias(node) or node.op_type == "Transpose"
            if at in self.calls or position or not moves or node.output[0] not in self.tensors:
                break
            path.append((at, node))
            name = node.output[0]
        return path

    # 2

    def absorb_casts(self) -> None:
        for at, node in enumerate(self.nodes):
            if node.op_type != "Cast" or at in self.calls:
                continue
            to = helper.get_attribute_value(node.attribute[0])
            source = self.tensors.get(node.input[0])
            if to == TensorProto.FLOAT and source is not None and source.dtype in NARROW:
                self._read_narrow(at, source)
            elif to == TensorProto.FLOAT16:
                self._write_half(at)

    def _read_narrow(self, at: int, source: Tensor) -> None:
        value = self.nodes[at].output[0]
        for reader, position in self.readers().get(value, ()):
            call = self.calls.get(reader)
            again = None if call is None else self._again(call, inputs=_typed(call, {position: source.dtype}))
            if again is not None:
                reads = (*again.reads[:position], source.name, *again.reads[position + 1 :])
                self.calls[reader] = replace(again, reads=reads)
        if value not in self.outputs and value not in self.readers():
            self.dropped.add(at)

    def _write_half(self, at: int) -> None:
        value, result = self.nodes[at].input[0], self.nodes[at].output[0]
        writer = next((i for i, call in self.calls.items() if call.writes == value), None)
        if writer is None or value in self.outputs or len(self.readers()[value]) != 1:
            return
        call = self.calls[writer]
        again = self._again(call, output=replace(call.layer.output, dtype=HALF))
        if again is not None:
            self.calls[writer] = replace(again, writes=result, result=replace(call.result, dtype=HALF))
            self.dropped.add(at)

    # 3

    def narrow(self, dtype: str) -> None:
        readers = self.readers()
        groups = [g for name in self._wide() if (g := self._read_by_products(name, readers)) is not None]
        while True:
            marked = {name for group in groups for name in group}
            changed = {
                at: self._retyped(call, marked, dtype) for at, call in self.calls.items() if _touches(call, marked)
            }
            refused = {n for at, again in changed.items() if again is None for n in _names(self.calls[at])}
            if not refused:
                break
            groups = [group for group in groups if not refused & group]
        self.calls |= {at: again for at, again in changed.items() if again is not None}
        to = {HALF: TensorProto.FLOAT16, BFLOAT: TensorProto.BFLOAT16}[dtype]
        for at, node in enumerate(self.nodes):
            if at not in self.calls and at not in self.dropped and node.output[0] in marked and not _is_alias(node):
                self.casts[at] = to

    def _wide(self) -> list[str]:
        """fp32 values that could be rounded where they are written: by a kernel, or by TVM, which fuses a Cast."""
        own = [call.writes for call in self.calls.values() if call.result.dtype == FLOAT]
        others = [
            node.output[0]
            for at, node in enumerate(self.nodes)
            if at not in self.calls and at not in self.dropped and len(node.output) == 1
            if not _is_alias(node) and node.op_type not in ("Cast", "Constant")
        ]
        return own + [name for name in others if name in self.tensors and self.tensors[name].dtype == FLOAT]

    def _read_by_products(self, name: str, readers: Mapping[str, list[tuple[int, int]]]) -> frozenset[str] | None:
        """The value and its other shapes, if nothing but kernels that may read it narrow does."""
        found = {name}
        if name in self.outputs or name not in readers:
            return None
        for at, position in readers[name]:
            call = self.calls.get(at)
            if call is None and _is_alias(self.nodes[at]) and position == 0:
                behind = self._read_by_products(self.nodes[at].output[0], readers)
                if behind is None:
                    return None
                found |= behind
            elif call is None or not (self.is_half or _rounds(call, position)):
                return None
        return frozenset(found)

    def _retyped(self, call: Call, marked: set[str], dtype: str) -> Call | None:
        inputs = _typed(call, {i: dtype for i, name in enumerate(call.reads) if name in marked})
        kind = dtype if call.writes in marked else call.result.dtype
        again = self._again(call, inputs=inputs, output=replace(call.layer.output, dtype=kind))
        return None if again is None else replace(again, result=replace(call.result, dtype=kind))

    def _again(self, call: Call, **changes: object) -> Call | None:
        """The call with a changed layer, if there is a kernel for it that reads the same."""
        layer = replace(call.layer, **changes)  # type: ignore[arg-type]
        kernel = choose(layer, self.target, OFFERS)
        if kernel is None or kernel.activations != call.kernel.activations or kernel.viewed != call.kernel.viewed:
            return None
        return replace(call, layer=layer, kernel=kernel)


def _strides(
    path: Sequence[onnx.NodeProto], shape: tuple[int, ...], tensors: Mapping[str, Tensor]
) -> tuple[int, ...] | None:
    """Where the axes of a value of this shape lie in what comes out at the end of a path of moves."""
    strides: tuple[int, ...] | None = contiguous(tensors[path[-1].output[0]].shape)
    for i in reversed(range(len(path))):
        before = tensors[path[i - 1].output[0]].shape if i else shape
        if strides is None:
            return None
        if path[i].op_type != "Transpose":
            strides = reshaped(tensors[path[i].output[0]].shape, strides, before)
            continue
        reverse = list(range(len(before)))[::-1]
        perm = next((list(a.ints) for a in path[i].attribute if a.name == "perm"), reverse)
        strides = tuple(strides[perm.index(axis)] for axis in range(len(before)))
    return strides


def _in_rows_of(layer: Layer) -> tuple[Tensor | None, ...]:
    """The inputs, a product's first with its rows counted in the axes of the result."""
    x, *rest = layer.inputs
    if (
        x is None
        or layer.op in ("Conv", CHANNELS_LAST)
        or math.prod(x.shape[:-1]) != math.prod(layer.output.shape[:-1])
    ):
        return layer.inputs
    return replace(x, shape=(*layer.output.shape[:-1], x.shape[-1])), *rest


def _typed(call: Call, types: Mapping[int, str]) -> tuple[Tensor | None, ...]:
    """The layer's inputs, those at these positions of `reads` with other types."""
    inputs = list(call.layer.inputs)
    for position, dtype in types.items():
        at = call.kernel.activations[position]
        known = inputs[at]
        inputs[at] = None if known is None else replace(known, dtype=dtype)
    return tuple(inputs)


def _names(call: Call) -> set[str]:
    return {*call.reads, call.writes}


def _touches(call: Call, names: set[str]) -> bool:
    return bool(names & _names(call))


def _is_alias(node: onnx.NodeProto) -> bool:
    return node.op_type in ALIASES


def _rounds(call: Call, position: int) -> bool:
    """Whether an operand is rounded before it is multiplied: a factor, not what the epilogue reads."""
    return call.kernel.activations[position] < 2 and call.layer.op in PRODUCTS
