"""Random networks: ops composed at random over tensors of known shapes, so that every graph is valid.

`python tests/fuzz_graphs.py COUNT [SEED]` is the long form of tests/test_fuzz.py: COUNT graphs, the seed of every
failure printed, exit 1 if there was one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int, ...]


@dataclass
class Builder:
    """A graph in the making; `pool` holds the tensors that may be read, with their shapes."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    pool: list[tuple[str, Shape]] = field(default_factory=list)

    def weight(self, *shape: int, scale: float | None = None) -> str:
        name = f"w{len(self.weights)}"
        fan = float(np.prod(shape[1:])) if len(shape) > 1 else 1.0
        array = self.rng.standard_normal(shape) * (scale if scale is not None else 1.0 / np.sqrt(max(fan, 1.0)))
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def ints(self, *values: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def node(self, kind: str, inputs: list[str], *shapes: Shape, **attributes: Any) -> str:
        """Append a node; its outputs join the pool. Returns the first."""
        outputs = [f"t{len(self.nodes)}_{k}" for k in range(len(shapes))]
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=f"{kind}{len(self.nodes)}", **attributes))
        self.pool += zip(outputs, shapes, strict=True)
        return outputs[0]

    def pick(self, rank: int | None = None) -> tuple[str, Shape]:
        """A tensor, recent ones more likely."""
        fit = [p for p in self.pool if rank is None or len(p[1]) == rank]
        return fit[max(int(self.rng.integers(len(fit))), int(self.rng.integers(len(fit))))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def choice(self, options: list[Any]) -> Any:
        return options[int(self.rng.integers(len(options)))]


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def conv(b: Builder, x: str, s: Shape) -> None:
    c = s[1]
    groups = b.choice(divisors(c)) if b.chance(0.4) else 1
    out = groups * int(b.rng.integers(1, max(2, 12 // groups + 1)))
    bias = [b.weight(out, scale=0.3)] if b.chance(0.6) else []
    b.node("Conv", [x, b.weight(out, c // groups, 3, 3), *bias], (s[0], out, *s[2:]), group=groups, pads=[1, 1, 1, 1])


def conv_transpose(b: Builder, x: str, s: Shape) -> None:
    c = s[1]
    groups = b.choice(divisors(c)) if b.chance(0.4) else 1
    within = int(b.rng.integers(1, 5))
    b.node("ConvTranspose", [x, b.weight(c, within, 1, 1)], (s[0], groups * within, *s[2:]), group=groups)


def batch_norm(b: Builder, x: str, s: Shape) -> None:
    c = s[1]
    scale, bias, mean = (b.weight(c, scale=0.5) for _ in range(3))
    var = f"w{len(b.weights)}"
    b.weights.append(numpy_helper.from_array(b.rng.uniform(0.5, 1.5, c).astype(np.float32), var))
    b.node("BatchNormalization", [x, scale, bias, mean, var], s)


def unary(b: Builder, x: str, s: Shape) -> None:
    b.node(
        b.choice(["Relu", "Sigmoid", "Tanh", "Neg", "Abs", "Erf", "Softplus", "HardSwish", "Elu", "Identity"]), [x], s
    )


def binary(b: Builder, x: str, s: Shape) -> None:
    twins = [n for n, t in b.pool if t == s and n != x]
    kind = b.choice(["Add", "Mul", "Sub", "Max"])
    if twins and b.chance(0.7):
        b.node(kind, [x, b.choice(twins)], s)
    else:
        shape = [n if b.chance(0.5) else 1 for n in s][int(b.rng.integers(len(s))) :]
        b.node(kind, [x, b.weight(*shape, scale=0.5)], s)


def divide(b: Builder, x: str, s: Shape) -> None:
    name = f"w{len(b.weights)}"
    shape = [n if b.chance(0.5) else 1 for n in s]
    b.weights.append(numpy_helper.from_array(b.rng.uniform(0.5, 2.0, shape).astype(np.float32), name))
    b.node("Div", [x, name], s)


def concat(b: Builder, x: str, s: Shape) -> None:
    axis = int(b.rng.integers(1, len(s)))
    fit = [p for p in b.pool if len(p[1]) == len(s) and p[1][:axis] + p[1][axis + 1 :] == s[:axis] + s[axis + 1 :]]
    parts = [(x, s), *fit[-3:]]
    total = sum(t[axis] for _, t in parts)
    if total <= 64:
        b.node("Concat", [n for n, _ in parts], (*s[:axis], total, *s[axis + 1 :]), axis=axis)


def split(b: Builder, x: str, s: Shape) -> None:
    axis = int(b.rng.integers(1, len(s)))
    if s[axis] < 2:
        return
    cut = int(b.rng.integers(1, s[axis]))
    shapes = [(*s[:axis], n, *s[axis + 1 :]) for n in (cut, s[axis] - cut)]
    b.node("Split", [x, b.ints(cut, s[axis] - cut)], *shapes, axis=axis)


def slice_(b: Builder, x: str, s: Shape) -> None:
    axis = int(b.rng.integers(1, len(s)))
    start = int(b.rng.integers(0, s[axis]))
    stop = int(b.rng.integers(start + 1, s[axis] + 1))
    step = b.choice([1, 1, 2])
    n = len(range(start, stop, step))
    b.node("Slice", [x, b.ints(start), b.ints(stop), b.ints(axis), b.ints(step)], (*s[:axis], n, *s[axis + 1 :]))


def gather(b: Builder, x: str, s: Shape) -> None:
    axis = int(b.rng.integers(1, len(s)))
    n = int(b.rng.integers(1, s[axis] + 1))
    index = b.rng.permutation(s[axis])[:n] if b.chance(0.7) else b.rng.integers(0, s[axis], n)
    b.node("Gather", [x, b.ints(*index)], (*s[:axis], n, *s[axis + 1 :]), axis=axis)


def reshape(b: Builder, x: str, s: Shape) -> None:
    """Split an axis into factors or merge two neighbours, sometimes through -1 or 0."""
    axis = int(b.rng.integers(1, len(s)))
    inner = b.choice(divisors(s[axis]))
    if b.chance(0.6) and len(s) < 5:
        out: Shape = (*s[:axis], s[axis] // inner, inner, *s[axis + 1 :])
    elif axis + 1 < len(s) and len(s) > 3:
        out = (*s[:axis], s[axis] * s[axis + 1], *s[axis + 2 :])
    else:
        return
    target = list(out)
    if b.chance(0.4):
        target[int(b.rng.integers(len(out)))] = -1
    b.node("Reshape", [x, b.ints(*target)], out)


def computed_reshape(b: Builder, x: str, s: Shape) -> None:
    """(A, B, ...) -> (A, B * rest) with the target computed from Shape."""
    if len(s) < 3:
        return
    b.nodes.append(helper.make_node("Shape", [x], [f"s{len(b.nodes)}"]))
    shape = b.nodes[-1].output[0]
    b.nodes.append(helper.make_node("Gather", [shape, b.ints(0)], [f"s{len(b.nodes)}"], axis=0))
    first = b.nodes[-1].output[0]
    b.nodes.append(helper.make_node("Concat", [first, b.ints(-1)], [f"s{len(b.nodes)}"], axis=0))
    b.node("Reshape", [x, b.nodes[-1].output[0]], (s[0], int(np.prod(s[1:]))))


def transpose(b: Builder, x: str, s: Shape) -> None:
    perm = [0, *(1 + int(i) for i in b.rng.permutation(len(s) - 1))]
    b.node("Transpose", [x], tuple(s[i] for i in perm), perm=perm)


def shuffle(b: Builder, x: str, s: Shape) -> None:
    groups = b.choice(divisors(s[1]))
    y = b.node("Reshape", [x, b.ints(s[0], groups, s[1] // groups, *s[2:])], (s[0], groups, s[1] // groups, *s[2:]))
    z = b.node("Transpose", [y], (s[0], s[1] // groups, groups, *s[2:]), perm=[0, 2, 1, *range(3, len(s) + 1)])
    b.node("Reshape", [z, b.ints(*s)], s)


def matmul(b: Builder, x: str, s: Shape) -> None:
    n = int(b.rng.integers(1, 13))
    b.node("MatMul", [x, b.weight(s[-1], n)], (*s[:-1], n))


def matmul_pair(b: Builder, x: str, s: Shape) -> None:
    """Two activations against each other, as in attention."""
    if len(s) < 3:
        return
    perm = [*range(len(s) - 2), len(s) - 1, len(s) - 2]
    t = b.node("Transpose", [x], (*s[:-2], s[-1], s[-2]), perm=perm)
    b.node("MatMul", [x, t], (*s[:-1], s[-2]))


def pad(b: Builder, x: str, s: Shape) -> None:
    axis = int(b.rng.integers(1, len(s)))
    before, after = (int(v) for v in b.rng.integers(0, 3, 2))
    widths = [0] * (2 * len(s))
    widths[axis], widths[len(s) + axis] = before, after
    b.node("Pad", [x, b.ints(*widths)], (*s[:axis], s[axis] + before + after, *s[axis + 1 :]))


def reduce(b: Builder, x: str, s: Shape) -> None:
    axis, keep = int(b.rng.integers(1, len(s))), b.chance(0.5)
    out = (*s[:axis], *([1] if keep else []), *s[axis + 1 :])
    if len(out) > 1:
        kind = b.choice(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2"])
        b.node(kind, [x, b.ints(axis)], out, keepdims=int(keep))


def softmax(b: Builder, x: str, s: Shape) -> None:
    b.node("Softmax", [x], s, axis=int(b.rng.integers(1, len(s))))


def layer_norm(b: Builder, x: str, s: Shape) -> None:
    b.node("LayerNormalization", [x, b.weight(s[-1], scale=1.0)], s, axis=-1)


def rms_norm(b: Builder, x: str, s: Shape) -> None:
    square = b.node("Mul", [x, x], s)
    mean = b.node("ReduceMean", [square, b.ints(-1)], (*s[:-1], 1), keepdims=1)
    eps = f"w{len(b.weights)}"
    b.weights.append(numpy_helper.from_array(np.array(0.1, np.float32), eps))
    root = b.node("Sqrt", [b.node("Add", [mean, eps], (*s[:-1], 1))], (*s[:-1], 1))
    b.node("Mul", [b.node("Div", [x, root], s), b.weight(s[-1], scale=1.0)], s)


def expand(b: Builder, x: str, s: Shape) -> None:
    if len(s) < 5:
        n = int(b.rng.integers(2, 4))
        y = b.node("Unsqueeze", [x, b.ints(2)], (*s[:2], 1, *s[2:]))
        b.node("Expand", [y, b.ints(*s[:2], n, *s[2:])], (*s[:2], n, *s[2:]))


def tile(b: Builder, x: str, s: Shape) -> None:
    repeats = [1] * len(s)
    repeats[int(b.rng.integers(1, len(s)))] = 2
    b.node("Tile", [x, b.ints(*repeats)], tuple(n * r for n, r in zip(s, repeats, strict=True)))


def pool(b: Builder, x: str, s: Shape) -> None:
    b.node(b.choice(["MaxPool", "AveragePool"]), [x], s, kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def squeeze_excite(b: Builder, x: str, s: Shape) -> None:
    g = b.node("GlobalAveragePool", [x], (*s[:2], 1, 1))
    h = b.node("Conv", [g, b.weight(3, s[1], 1, 1)], (s[0], 3, 1, 1))
    a = b.node("Sigmoid", [b.node("Conv", [h, b.weight(s[1], 3, 1, 1)], (*s[:2], 1, 1))], (*s[:2], 1, 1))
    b.node("Mul", [x, a], s)


def depth_to_space(b: Builder, x: str, s: Shape) -> None:
    if s[1] % 4 == 0 and s[2] <= 6:
        b.node("DepthToSpace", [x], (s[0], s[1] // 4, s[2] * 2, s[3] * 2), blocksize=2, mode=b.choice(["DCR", "CRD"]))


def where(b: Builder, x: str, s: Shape) -> None:
    name = f"w{len(b.weights)}"
    b.weights.append(numpy_helper.from_array(b.rng.random([n if b.chance(0.5) else 1 for n in s]) < 0.5, name))
    b.node("Where", [name, x, b.weight(1, scale=1.0)], s)


def clip(b: Builder, x: str, s: Shape) -> None:
    low, high = sorted(b.rng.standard_normal(2))
    names = []
    for value in (low, high):
        names.append(f"w{len(b.weights)}")
        b.weights.append(numpy_helper.from_array(np.array(value, np.float32), names[-1]))
    b.node("Clip", [x, *names], s)


ANY: list[Callable[[Builder, str, Shape], None]] = [
    unary, unary, binary, binary, divide, concat, split, slice_, gather, reshape, reshape, computed_reshape, transpose,
    matmul, matmul, matmul_pair, pad, reduce, softmax, layer_norm, rms_norm, expand, tile, where, clip,
]  # fmt: skip
IMAGES = [conv, conv, conv, conv_transpose, batch_norm, shuffle, pool, squeeze_excite, depth_to_space]


def network(seed: int) -> onnx.ModelProto:
    """A network of 4 to 24 steps from an input of rank 3 or 4, its last tensors read by a final product each."""
    rng = np.random.default_rng(seed)
    b = Builder(rng)
    images = b.chance(0.6)
    shape: Shape = (1, 4, 4, 6) if images else (2, 5, 8)
    b.pool.append(("x", shape))
    (conv if images else matmul)(b, "x", shape)
    for _ in range(int(rng.integers(4, 25))):
        rank4 = any(len(s) == 4 for _, s in b.pool)
        step = b.choice(ANY + IMAGES * 2) if rank4 else b.choice(ANY)
        x, s = b.pick(4 if step in IMAGES else None)
        if len(s) > 1 and np.prod(s) < 4096:
            step(b, x, s)
    read = {i for n in b.nodes for i in n.input}
    outputs = []
    for name, s in [p for p in b.pool if p[0] not in read][-3:]:
        last = b.node("MatMul", [name, b.weight(s[-1], 3)], (*s[:-1], 3))
        outputs.append(helper.make_tensor_value_info(last, TensorProto.FLOAT, [*s[:-1], 3]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(b.nodes, f"fuzz{seed}", inputs, outputs, b.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def check(seed: int) -> bool:
    """Prune random channels of every group and compare with the masked network. True where something was removed.

    A network whose own outputs are not finite, or change with the input's last digits, proves nothing and counts as nothing removed."""
    from oracle import masked, onnxruntime

    import spa
    from spa.planning import from_masks

    proto = network(seed)
    model = spa.load(proto)
    coupling = spa.analyze(model)
    rng = np.random.default_rng(seed)
    masks = {}
    for group in coupling.groups:
        mask = rng.random(group.size) < 0.4
        for labels in group.labels.values():  # no axis may become empty
            present = np.unique(labels[labels >= 0])
            if mask[present].all():
                mask[rng.choice(present)] = False
        for labels in group.labels.values():
            present = np.unique(labels[labels >= 0])
            mask[present[0]] &= not mask[present].all()
        masks[group.id] = mask
    plan = from_masks(coupling, masks)
    cut = spa.apply(model, plan).model.to_proto()
    onnx.checker.check_model(cut, full_check=True)
    x = rng.standard_normal([d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]).astype(np.float32)
    if not all(np.isfinite(a).all() for a in onnxruntime(proto, {"x": x})):
        return False
    dense = masked(proto, plan.removed)
    shaken = onnxruntime(dense, {"x": (x * (1 + 1e-6 * rng.standard_normal(x.shape))).astype(np.float32)})
    for a, b, c in zip(onnxruntime(dense, {"x": x}), shaken, onnxruntime(cut, {"x": x}), strict=True):
        if not np.allclose(a, b, rtol=1e-3, atol=1e-4 * float(np.abs(a).max())):
            return False  # a normalisation over equal numbers blows rounding up: this network proves nothing
        np.testing.assert_allclose(a, c, rtol=2e-3, atol=2e-4 * max(1e-3, float(np.abs(a).max())))
    return bool(plan.removed)


def main() -> int:
    count, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    failed = removed = 0
    for seed in range(first, first + count):
        try:
            removed += check(seed)
        except Exception as error:  # whatever went wrong, name the seed and go on
            failed += 1
            print(f"seed {seed}: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}", flush=True)
    print(f"{count} graphs, {removed} with channels removed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
