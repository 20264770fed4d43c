"""Networks to time: the usual ones by their published shapes, with random weights, dense or thinned out.

Batch normalisation is folded already, as in any network that is to be deployed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


TWO_OF_FOUR = (2, 4)  # in place of a block: of four inputs the greater two


def thin(weight: Array, sparsity: float, block: tuple[int, int], random: np.random.Generator) -> Array:
    """`weight` [outputs, rest] with this share of its blocks [outputs x rest] zeroed, chosen at random per matrix."""
    if block == TWO_OF_FOUR:
        fours = np.abs(weight.reshape(-1, 4))
        return np.where(fours >= np.sort(fours)[:, 2:3], weight.reshape(-1, 4), 0).reshape(weight.shape)
    if sparsity == 0 or weight.shape[0] % block[0]:
        return weight
    flat = weight.reshape(weight.shape[0], -1)
    if flat.shape[1] % block[1]:
        return weight
    keep = random.random((flat.shape[0] // block[0], flat.shape[1] // block[1])) >= sparsity
    return np.asarray(flat * np.kron(keep, np.ones(block, np.float32)), np.float32).reshape(weight.shape)


@dataclass
class Writer:
    """Collects nodes. `sparsity` and `block` apply to the layers for which `thinned` is asked.
    `bits`, 8 or 4: matrices of `linear` lie behind DequantizeLinear, with a scale per output."""

    sparsity: float = 0.0
    block: tuple[int, int] = (1, 1)
    bits: int = 32
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"{op}_{len(self.nodes)}", **attributes))
        return name

    def constant(self, value: Array) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, *shape: int, thinned: bool = False) -> str:
        fan = int(np.prod(shape[1:])) * (1 - self.sparsity if thinned else 1)
        value = (self.random.standard_normal(shape) * np.sqrt(2 / fan)).astype(np.float32)
        return self.constant(thin(value, self.sparsity, self.block, self.random) if thinned else value)

    def conv(
        self, x: str, cin: int, cout: int, k: int, stride: int = 1, group: int = 1, thinned: bool | None = None
    ) -> str:
        thinned = group == 1 and cin > 3 if thinned is None else thinned
        bias = self.constant((0.1 * self.random.standard_normal(cout)).astype(np.float32))
        attributes = {"strides": [stride] * 2, "pads": [k // 2] * 4, "group": group, "kernel_shape": [k, k]}
        return self.node("Conv", x, self.weight(cout, cin // group, k, k, thinned=thinned), bias, **attributes)

    def linear(self, x: str, cin: int, cout: int) -> str:
        """x W + b as exporters write it: MatMul with W [cin, cout], whose rows of outputs are thinned, then Add."""
        fan = cin * (1 - self.sparsity)
        value = (self.random.standard_normal((cout, cin)) * np.sqrt(1 / fan)).astype(np.float32)
        weight = thin(value, self.sparsity, self.block, self.random)
        bias = (0.1 * self.random.standard_normal(cout)).astype(np.float32)
        if self.bits < 32:
            scale = (np.abs(weight).max(1) / (2 ** (self.bits - 1) - 1)).astype(np.float32)
            codes = np.ascontiguousarray(np.round(weight / scale[:, None]).astype(np.int8).T)
            matrix = self.node("DequantizeLinear", self.constant(codes), self.constant(scale), axis=1)
        else:
            matrix = self.constant(np.ascontiguousarray(weight.T))
        return self.node("Add", self.node("MatMul", x, matrix), self.constant(bias))

    def scalar(self, value: float) -> str:
        return self.constant(np.float32(value))

    def gelu(self, x: str) -> str:
        """x (1 + erf(x / sqrt 2)) / 2, in the operators of an exporter."""
        e = self.node("Erf", self.node("Div", x, self.scalar(2**0.5)))
        return self.node("Mul", self.node("Mul", x, self.node("Add", e, self.scalar(1))), self.scalar(0.5))

    def norm(self, x: str, width: int) -> str:
        scale = self.constant((1 + 0.1 * self.random.standard_normal(width)).astype(np.float32))
        shift = self.constant((0.1 * self.random.standard_normal(width)).astype(np.float32))
        return self.node("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-12)

    def heads(self, x: str, tokens: int, heads: int, width: int, perm: list[int]) -> str:
        shape = self.constant(np.array([1, tokens, heads, width // heads], np.int64))
        return self.node("Transpose", self.node("Reshape", x, shape), perm=perm)

    def relu6(self, x: str) -> str:
        return self.node("Clip", x, self.constant(np.float32(0)), self.constant(np.float32(6)))

    def classify(self, x: str, cin: int, classes: int = 1000) -> str:
        x = self.node("Flatten", self.node("GlobalAveragePool", x))
        return self.node("Gemm", x, self.weight(classes, cin), self.weight(classes), transB=1)

    def model(self, name: str, shape: tuple[int, ...], output: str, result: tuple[int, ...]) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        y = helper.make_tensor_value_info(output, TensorProto.FLOAT, result)
        graph = helper.make_graph(self.nodes, name, [x], [y], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def mobilenet_v1(size: int = 224, sparsity: float = 0.0, block: tuple[int, int] = (1, 1)) -> onnx.ModelProto:
    w = Writer(sparsity, block)
    x, cin = w.relu6(w.conv("x", 3, 32, 3, 2)), 32
    for cout, stride in [
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        *[(512, 1)] * 5,
        (1024, 2),
        (1024, 1),
    ]:
        x = w.relu6(w.conv(x, cin, cin, 3, stride, group=cin))
        x, cin = w.relu6(w.conv(x, cin, cout, 1)), cout
    return w.model("mobilenet_v1", (1, 3, size, size), w.classify(x, cin), (1, 1000))


def mobilenet_v2(size: int = 224, sparsity: float = 0.0, block: tuple[int, int] = (1, 1)) -> onnx.ModelProto:
    w = Writer(sparsity, block)
    x, cin = w.relu6(w.conv("x", 3, 32, 3, 2)), 32
    for t, c, n, s in [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]:
        for i in range(n):
            inner, stride = cin * t, s if i == 0 else 1
            y = w.relu6(w.conv(x, cin, inner, 1)) if t > 1 else x
            y = w.relu6(w.conv(y, inner, inner, 3, stride, group=inner))
            y = w.conv(y, inner, c, 1)
            x, cin = w.node("Add", x, y) if stride == 1 and cin == c else y, c
    x = w.relu6(w.conv(x, cin, 1280, 1))
    return w.model("mobilenet_v2", (1, 3, size, size), w.classify(x, 1280), (1, 1000))


def resnet50(size: int = 224, sparsity: float = 0.0, block: tuple[int, int] = (1, 1)) -> onnx.ModelProto:
    w = Writer(sparsity, block)
    x = w.node("Relu", w.conv("x", 3, 64, 7, 2))
    x, cin = w.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), 64
    for c, n, s in [(64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)]:
        for i in range(n):
            stride = s if i == 0 else 1
            y = w.node("Relu", w.conv(x, cin, c, 1))
            y = w.node("Relu", w.conv(y, c, c, 3, stride))
            y = w.conv(y, c, 4 * c, 1)
            short = w.conv(x, cin, 4 * c, 1, stride) if i == 0 else x
            x, cin = w.node("Relu", w.node("Add", y, short)), 4 * c
    return w.model("resnet50", (1, 3, size, size), w.classify(x, cin), (1, 1000))


def encoder(tokens: int = 128, sparsity: float = 0.0, block: tuple[int, int] = (1, 1)) -> onnx.ModelProto:
    """As large as MiniLM: 6 layers of BERT's, 384 wide, 12 heads, 1536 between; from embeddings on."""
    w, width, heads, inner = Writer(sparsity, block), 384, 12, 1536
    x = w.norm("x", width)
    flat = w.constant(np.array([1, tokens, width], np.int64))
    for _ in range(6):
        q, k, v = (w.linear(x, width, width) for _ in range(3))
        q, v = (w.heads(t, tokens, heads, width, [0, 2, 1, 3]) for t in (q, v))
        scores = w.node("MatMul", q, w.heads(k, tokens, heads, width, [0, 2, 3, 1]))
        p = w.node("Softmax", w.node("Div", scores, w.scalar((width / heads) ** 0.5)), axis=-1)
        mixed = w.node("Reshape", w.node("Transpose", w.node("MatMul", p, v), perm=[0, 2, 1, 3]), flat)
        x = w.norm(w.node("Add", w.linear(mixed, width, width), x), width)
        y = w.linear(w.gelu(w.linear(x, width, inner)), inner, width)
        x = w.norm(w.node("Add", y, x), width)
    return w.model("encoder", (1, tokens, width), x, (1, tokens, width))


def decoder_step(
    width: int = 1024, sparsity: float = 0.0, block: tuple[int, int] = (1, 1), bits: int = 32
) -> onnx.ModelProto:
    """The products of one new token: 4 layers, each 4 width by width and a feed-forward of 4 widths, normalised before.
    Attention over the past is left out: what it costs depends on how long that is, not on the weights."""
    w, x = Writer(sparsity, block, bits), "x"
    for _ in range(4):
        n = w.norm(x, width)
        q, k, v = (w.linear(n, width, width) for _ in range(3))
        mixed = w.node("Mul", w.node("Sigmoid", w.node("Mul", q, k)), v)
        x = w.node("Add", x, w.linear(mixed, width, width))
        x = w.node("Add", x, w.linear(w.gelu(w.linear(w.norm(x, width), width, 4 * width)), 4 * width, width))
    return w.model("decoder_step", (1, width), x, (1, width))


SIZES = {"encoder": 128, "decoder_step": 1024}  # tokens, width; the others' pictures are 224 wide
NETWORKS = {
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "resnet50": resnet50,
    "encoder": encoder,
    "decoder_step": decoder_step,
}
