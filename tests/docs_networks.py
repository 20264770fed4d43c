"""Networks that the documentation talks of and the project does not ship: made here, with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Graph:
    """Nodes and weights as they come; every method returns the name of its output."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, op: str, *inputs: str, name: str = "", **attributes: object) -> str:
        name = name or f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def constant(self, name: str, values: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def shape(self, *sizes: int) -> str:
        return self.constant(f"shape{len(self.weights)}", np.array(sizes, np.int64))

    def drawn(self, name: str, *shape: int) -> str:
        fan = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
        return self.constant(name, (self.rng.standard_normal(shape) * fan**-0.5).astype(np.float32))

    def conv(
        self, x: str, name: str, enters: int, leaves: int, size: int = 3, stride: int = 1, act: bool = True
    ) -> str:
        weight = self.drawn(f"{name}.weight", leaves, enters, size, size)
        bias = self.constant(f"{name}.bias", np.zeros(leaves, np.float32))
        y = self.node("Conv", x, weight, bias, name=name, pads=[size // 2] * 4, strides=[stride] * 2)
        return self.node("Mul", y, self.node("Sigmoid", y)) if act else y

    def linear(self, x: str, name: str, enters: int, leaves: int) -> str:
        y = self.node("MatMul", x, self.drawn(f"{name}.weight", enters, leaves), name=name)
        return self.node("Add", y, self.constant(f"{name}.bias", np.zeros(leaves, np.float32)))

    def save(self, path: str | Path, inputs: list[onnx.ValueInfoProto], outputs: dict[str, list[str | int]]) -> None:
        made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
        graph = helper.make_graph(self.nodes, Path(path).stem, inputs, made, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)


def detector(path: str | Path) -> None:
    """Backbone, a neck that joins two scales, and a head of boxes and scores, as one-stage detectors are built."""
    g = Graph()
    c2 = g.conv(g.conv("images", "stem", 3, 16, stride=2), "down1", 16, 32, stride=2)
    left, right = "split.left", "split.right"
    g.nodes.append(helper.make_node("Split", [c2, g.shape(16, 16)], [left, right], name="split", axis=1))
    inner = g.node("Add", right, g.conv(g.conv(right, "block.a", 16, 16), "block.b", 16, 16))
    c2 = g.conv(g.node("Concat", left, right, inner, name="join", axis=1), "mix", 48, 32, 1)
    c3 = g.conv(c2, "down2", 32, 64, stride=2)
    pooled = g.node("MaxPool", c3, kernel_shape=[5, 5], pads=[2] * 4, strides=[1, 1])
    c3 = g.conv(g.node("Concat", c3, pooled, axis=1), "pyramid", 128, 64, 1)
    scales = g.constant("scales", np.array([1, 1, 2, 2], np.float32))
    up = g.node("Resize", c3, "", scales, mode="nearest")
    fine = g.conv(g.node("Concat", up, c2, axis=1), "neck", 96, 32)
    heads = []
    for level, (x, width, cells) in enumerate([(fine, 32, 64), (c3, 64, 16)]):
        boxes = g.conv(g.conv(x, f"box{level}.a", width, 32), f"box{level}.b", 32, 4, 1, act=False)
        scores = g.node("Sigmoid", g.conv(g.conv(x, f"cls{level}.a", width, 32), f"cls{level}.b", 32, 3, 1, act=False))
        heads.append(g.node("Reshape", g.node("Concat", boxes, scores, axis=1), g.shape(1, 7, cells)))
    g.nodes.append(helper.make_node("Concat", heads, ["detections"], name="detections", axis=2))
    g.save(path, [helper.make_tensor_value_info("images", 1, [1, 3, 32, 32])], {"detections": [1, 7, 80]})


def transformer(path: str | Path, width: int = 64, heads: int = 4, layers: int = 2) -> None:
    """An encoder of tokens: attention of several heads, residual sums, normalisation, a classifier on the mean."""
    g = Graph()
    each = width // heads
    x = g.node("Gather", g.drawn("embedding", 100, width), "tokens", name="embed")
    for layer in range(layers):
        q, k, v = (
            g.node(
                "Transpose",
                g.node("Reshape", g.linear(x, f"l{layer}.{part}", width, width), g.shape(0, 0, heads, each)),
                perm=[0, 2, 3, 1] if part == "key" else [0, 2, 1, 3],
            )
            for part in ("query", "key", "value")
        )
        scaled = g.node("Mul", g.node("MatMul", q, k), g.constant(f"l{layer}.scale", np.array(each**-0.5, np.float32)))
        mixed = g.node("MatMul", g.node("Softmax", scaled, axis=-1), v)
        mixed = g.node("Reshape", g.node("Transpose", mixed, perm=[0, 2, 1, 3]), g.shape(0, 0, width))
        x = _normal(g, g.node("Add", x, g.linear(mixed, f"l{layer}.output", width, width)), f"l{layer}.norm1", width)
        inner = g.node("Relu", g.linear(x, f"l{layer}.wide", width, 4 * width))
        x = _normal(
            g, g.node("Add", x, g.linear(inner, f"l{layer}.narrow", 4 * width, width)), f"l{layer}.norm2", width
        )
    mean = g.node("ReduceMean", x, g.shape(1), keepdims=0)
    logits = g.linear(mean, "classifier", width, 5)
    g.nodes.append(helper.make_node("Identity", [logits], ["logits"]))
    g.save(path, [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["N", 16])], {"logits": ["N", 5]})


def _normal(g: Graph, x: str, name: str, width: int) -> str:
    scale = g.constant(f"{name}.scale", np.ones(width, np.float32))
    return g.node("LayerNormalization", x, scale, g.constant(f"{name}.bias", np.zeros(width, np.float32)), name=name)


def tokens(path: str | Path, count: int = 64) -> None:
    """Sequences as the transformer reads them."""
    np.savez(path, tokens=np.random.default_rng(1).integers(0, 100, (count, 16)))


def pictures(path: str | Path, count: int = 16) -> None:
    """Inputs of the detector: noise with neighbours alike."""
    noise = np.random.default_rng(1).random((count, 3, 8, 8), np.float32)
    np.savez(path, images=noise.repeat(4, 2).repeat(4, 3))
