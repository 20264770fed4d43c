"""NHWC inside a network: convolutions, what is computed element by element between them, pools and concatenations with the
channels last, so that kernels fetch and write channels side by side. Decided before kernels are chosen, for the whole network:

- A Conv of which inputs and outputs are multiples of 8 channels starts or continues NHWC; 1x1 of stride 1 becomes MatMul,
  anything else `ConvChannelsLast` (see `layers`); depthwise ones continue it.
- Element-wise operators, Concat of channels, MaxPool, AveragePool continue it. Means over pixels end it for nothing.
- Before any other operator, and for outputs, a Transpose leads back; behind the first NCHW convolution one leads in,
  which that kernel's way of writing takes over (see `storage`).

Taken where the convolutions are predicted to gain more than the Transposes that remain cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from spa.codegen.cuda.calls import tensors_of
from spa.codegen.cuda.cost import Arch, arch_of, transfer_us
from spa.codegen.cuda.families import candidates
from spa.codegen.cuda.layers import CHANNELS_LAST, matrix_of
from spa.codegen.cuda.windows import CHUNK
from spa.codegen.cuda.words import NARROW, OPERANDS
from spa.codegen.fusion import ATTRIBUTES
from spa.codegen.kernels.vector import product
from spa.codegen.kernels.window import Window, window_of
from spa.codegen.layer import Array, Layer
from spa.codegen.program import Tensor
from spa.codegen.target import Target

LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # permutations to NHWC and back
LEAST = 16  # channels of a convolution that is worth it
SHAPELESS = {*ATTRIBUTES, "Softplus", "Selu", "Mish", "Celu", "Identity", "Log", "Floor", "Round", "Softsign", "Sign"}
POOLS = ("MaxPool", "AveragePool")


def channels_last(model: onnx.ModelProto, target: Target) -> onnx.ModelProto:
    """The prepared model with NHWC inside, or the same where that does not pay."""
    if OPERANDS[target.features[0]] not in NARROW:
        return model
    written, gain = rewritten(model, target)
    return written if gain > 0 else model


def rewritten(model: onnx.ModelProto, target: Target) -> tuple[onnx.ModelProto, float]:
    """The model with NHWC wherever that can be, and the microseconds that it is predicted to gain."""
    rewriter = _Rewriter(model, arch_of(target.cpu), OPERANDS[target.features[0]])
    rewriter.run()
    return rewriter.result(), rewriter.gain


class _Rewriter:
    """The network while it is written anew. `last`: values that are there in NHWC -> their names; `first`: those of them that
    are there in NCHW too. `gain`: predicted microseconds."""

    def __init__(self, model: onnx.ModelProto, arch: Arch, operand: str) -> None:
        self.model, self.arch, self.operand = model, arch, operand
        self.tensors = tensors_of(model)
        self.consts = {t.name: t for t in model.graph.initializer}
        self.axes_as_input = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1) >= 18
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.declared: list[onnx.ValueInfoProto] = []
        self.last: dict[str, str] = {}
        self.first: set[str] = set()
        self.free: set[str] = set()  # what an NCHW convolution makes (and what follows it): it may write NHWC as well
        self.gain = 0.0

    def run(self) -> None:
        rules = {"Conv": self._conv, "Concat": self._concat, "GlobalAveragePool": self._mean, "ReduceMean": self._mean}
        rules |= dict.fromkeys(POOLS, self._pool) | dict.fromkeys(SHAPELESS, self._elementwise)
        for node in self.model.graph.node:
            rule = rules.get(node.op_type)
            if rule is None or len(node.output) != 1 or node.output[0] not in self.tensors or not rule(node):
                for name in _reads(node):
                    self._to_first(name)
                self.nodes.append(node)
                if self._is_free(node):
                    self.free.add(node.output[0])
        for output in self.model.graph.output:
            self._to_first(output.name)

    def _is_free(self, node: onnx.NodeProto) -> bool:
        known = self.tensors.get(node.output[0])
        if known is None or len(known.shape) != 4 or known.shape[1] % CHUNK or product(known.shape[2:]) == 1:
            return False
        behind = node.op_type in ATTRIBUTES and all(n in self.free or n in self.consts or not n for n in node.input)
        return node.op_type == "Conv" or behind

    def result(self) -> onnx.ModelProto:
        result = onnx.ModelProto()
        result.CopyFrom(self.model)
        del result.graph.node[:]
        result.graph.node.extend(onnx.NodeProto.FromString(n.SerializeToString()) for n in self.nodes)
        result.graph.initializer.extend(self.constants)
        result.graph.value_info.extend(self.declared)
        return result

    # Rules: whether the node has been written with its channels last

    def _conv(self, node: onnx.NodeProto) -> bool:
        x, y = self.tensors.get(node.input[0]), self.tensors[node.output[0]]
        weight, bias = self._value(node.input[1]), self._value(node.input[2]) if len(node.input) > 2 else None
        if x is None or weight is None or weight.ndim != 4 or (len(node.input) > 2 and node.input[2] and bias is None):
            return False
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        group = int(attributes.get("group", 1))
        consts = {1: weight} if bias is None else {1: weight, 2: bias}
        tensors = (
            x,
            Tensor("w", "float32", weight.shape),
            *([] if bias is None else [Tensor("b", "float32", bias.shape)]),
        )
        layer = Layer(node.name, "Conv", attributes, tensors, y, consts)
        window = window_of(layer, weight.shape[2:])
        m, c = y.shape[1], x.shape[1]
        depthwise = group == c == m and group > 1
        if window is None or m % CHUNK or c % CHUNK or not (depthwise or (group == 1 and min(m, c) >= LEAST)):
            return False
        if product(window.size) == 1 or (depthwise and node.input[0] not in {*self.last, *self.free}):
            return False
        out = node.output[0]
        there, result = self._to_last(node.input[0]), f"{out}.nhwc"
        plain = product(window.kernel) == 1 and window.strides == (1, 1) and window.size == window.out and not depthwise
        if plain and window.pads == (0, 0):
            w = self._constant(f"{out}.w", np.ascontiguousarray(weight[:, :, 0, 0].T))
            between = result if bias is None else f"{out}.product"
            self._write(helper.make_node("MatMul", [there, w], [between], name=node.name), between, y)
            if bias is not None:
                self._write(helper.make_node("Add", [between, self._constant(f"{out}.b", bias)], [result]), result, y)
        else:
            geometry = _geometry(window)
            made = helper.make_node(
                CHANNELS_LAST, [there, *node.input[1:]], [result], name=node.name, group=group, **geometry
            )
            self._write(made, result, y)
        self.last[out] = result
        if not depthwise:
            self.gain += self._microseconds(layer) - self._microseconds(_as_last(layer, window, plain))
        return True

    def _elementwise(self, node: onnx.NodeProto) -> bool:
        known = self.tensors[node.output[0]]
        if len(known.shape) != 4 or not any(n in self.last for n in node.input):
            return False
        ready = [self._operand(name, known.shape) for name in node.input]
        if any(make is None for make in ready):
            return False
        self._copy(node, [make() for make in ready if make is not None])
        return True

    def _operand(self, name: str, shape: tuple[int, ...]) -> Callable[[], str] | None:
        """What makes an operand ready, or None where it cannot be."""
        value, known = self._value(name) if name in self.consts else None, self.tensors.get(name)
        if not name or (value is not None and value.size == 1):
            return lambda: name
        if value is not None:
            padded = value.reshape((1,) * (4 - value.ndim) + value.shape) if value.ndim <= 4 else None
            return None if padded is None else lambda: self._constant(f"{name}.nhwc", padded.transpose(LAST))
        if name in self.last and known is not None and known.shape == shape:
            return lambda: self.last[name]
        if known is not None and known.shape == (*shape[:2], 1, 1):
            return lambda: self._reshaped(name, f"{name}.pixel", (shape[0], 1, 1, shape[1]), known.dtype)
        if known is not None and known.shape == shape:
            return lambda: self._to_last(name)
        return None

    def _concat(self, node: onnx.NodeProto) -> bool:
        axis = next(int(a.i) for a in node.attribute if a.name == "axis")
        if axis not in (1, -3) or not all(n in self.last for n in node.input):
            return False
        self._copy(node, [self.last[n] for n in node.input], axis=3)
        return True

    def _pool(self, node: onnx.NodeProto) -> bool:
        get = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        usual = get.get("auto_pad", b"NOTSET") in (b"", b"NOTSET") and not get.get("storage_order", 0)
        there = node.input[0] in self.last or node.input[0] in self.free
        if not there or len(get["kernel_shape"]) != 2 or not usual:
            return False
        self._copy(node, [self._to_last(node.input[0])], op=f"{node.op_type}ChannelsLast")
        return True

    def _mean(self, node: onnx.NodeProto) -> bool:
        get = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.input[0] not in self.last:
            return False
        known, y = self.tensors[node.input[0]], self.tensors[node.output[0]]
        if node.op_type == "ReduceMean":
            axes = self._value(node.input[1]) if len(node.input) > 1 else np.array(get.get("axes", []))
            if axes is None or sorted(int(a) % 4 for a in axes.reshape(-1)) != [2, 3]:
                return False
        out = f"{node.output[0]}.mean"
        inputs = [self.last[node.input[0]]]
        more: dict[str, Any] = {} if self.axes_as_input else {"axes": [1, 2]}
        if self.axes_as_input:
            inputs.append(self._constant(f"{out}.axes", np.array([1, 2], np.int64)))
        self.nodes.append(helper.make_node("ReduceMean", inputs, [out], keepdims=1, **more))
        self._declare(out, (known.shape[0], 1, 1, known.shape[1]), known.dtype)
        self._reshaped(out, node.output[0], y.shape, y.dtype)
        return True

    # Words

    def _copy(self, node: onnx.NodeProto, inputs: Sequence[str], op: str | None = None, **attributes: int) -> None:
        """The node on other inputs, its result in NHWC."""
        made, result = onnx.NodeProto.FromString(node.SerializeToString()), f"{node.output[0]}.nhwc"
        made.op_type = op or node.op_type
        del made.input[:], made.output[:]
        made.input.extend(inputs)
        made.output.append(result)
        for attribute in made.attribute:
            if attribute.name in attributes:
                attribute.i = attributes[attribute.name]
        self._write(made, result, self.tensors[node.output[0]])
        self.last[node.output[0]] = result

    def _write(self, node: onnx.NodeProto, name: str, known: Tensor) -> None:
        """A node whose result has the shape that `known` has in NCHW."""
        self.nodes.append(node)
        self._declare(name, tuple(known.shape[axis] for axis in LAST), known.dtype)

    def _to_last(self, name: str) -> str:
        if name not in self.last:
            known, self.last[name] = self.tensors[name], f"{name}.nhwc"
            self._write(helper.make_node("Transpose", [name], [self.last[name]], perm=LAST), self.last[name], known)
            self.first.add(name)
            if name not in self.free:
                self.gain -= self._transpose_us(known)
        return self.last[name]

    def _to_first(self, name: str) -> None:
        if name in self.last and name not in self.first:
            self.first.add(name)
            self.nodes.append(helper.make_node("Transpose", [self.last[name]], [name], perm=FIRST))
            self.gain -= self._transpose_us(self.tensors[name])

    def _reshaped(self, source: str, target: str, shape: tuple[int, ...], dtype: str) -> str:
        if all(target not in node.output for node in self.nodes):
            shape_name = self._constant(f"{target}.shape", np.array(shape, np.int64))
            self.nodes.append(helper.make_node("Reshape", [source, shape_name], [target]))
            self._declare(target, shape, dtype)
        return target

    def _constant(self, name: str, value: Array) -> str:
        if all(t.name != name for t in self.constants):
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def _declare(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        if name not in self.tensors:
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            self.declared.append(helper.make_tensor_value_info(name, kind, shape))

    def _value(self, name: str) -> Array | None:
        return numpy_helper.to_array(self.consts[name]) if name in self.consts else None

    # What it is worth

    def _transpose_us(self, known: Tensor) -> float:
        return transfer_us(self.arch, 2 * 4 * product(known.shape))

    def _microseconds(self, layer: Layer) -> float:
        """Of the best kernel, if what it reads is narrow."""
        x, *rest = layer.inputs
        assert x is not None
        narrow = replace(layer, inputs=(replace(x, dtype=self.operand), *rest))
        matrix = matrix_of(narrow)
        found = [] if matrix is None else [c.us for c in candidates(narrow, matrix, self.arch, self.operand)]
        return min(found, default=float("inf"))


def _as_last(layer: Layer, window: Window, plain: bool) -> Layer:
    """The layer of the node that takes a Conv's place."""
    x, *rest = layer.inputs
    assert x is not None
    pictures = replace(x, shape=tuple(x.shape[axis] for axis in LAST))
    result = replace(layer.output, shape=tuple(layer.output.shape[axis] for axis in LAST))
    if plain:
        w = np.ascontiguousarray(layer.consts[1][:, :, 0, 0].T)
        return Layer(layer.name, "MatMul", {}, (pictures, Tensor("w", "float32", w.shape)), result, {1: w})
    return Layer(layer.name, CHANNELS_LAST, {"group": 1, **_geometry(window)}, (pictures, *rest), result, layer.consts)


def _geometry(window: Window) -> dict[str, Any]:
    """Attributes of the operator."""
    return {"out": window.out, "strides": window.strides, "dilations": window.dilations, "pads": window.pads}


def _reads(node: onnx.NodeProto) -> set[str]:
    """What a node and the bodies in it read."""
    bodies = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return {*node.input} | {name for body in bodies for inner in body.node for name in _reads(inner)}
