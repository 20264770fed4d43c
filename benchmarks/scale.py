"""How analysis grows: a chain of thousands of nodes, and a decoder of 32 layers x 4096 hidden whose weights stay on disk.

    python benchmarks/scale.py

Prints CPU seconds of `spa.load` and `spa.analyze`, nodes, groups, and the peak memory of the process. The decoder's
weights are an empty (sparse) file of their full size: a tool that read them would show it in memory.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import spa


class Graph:
    def __init__(self, data: str | None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.data, self.offset = data, 0

    def weight(self, *dims: int) -> str:
        name = f"w{len(self.weights)}"
        if self.data is None:
            self.weights.append(numpy_helper.from_array(np.ones(dims, np.float32), name))
        else:
            size = int(np.prod(dims)) * 4
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
            for key, value in (("location", self.data), ("offset", str(self.offset)), ("length", str(size))):
                tensor.external_data.add(key=key, value=value)
            self.offset += size
            self.weights.append(tensor)
        return name

    def ints(self, *values: int) -> str:
        name = f"i{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def node(self, kind: str, *inputs: str, **attributes: object) -> str:
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=f"n{len(self.nodes)}", **attributes))
        return out

    def save(self, path: Path, shape: list[int], out: str, out_shape: list[int]) -> None:
        info = helper.make_tensor_value_info
        graph = helper.make_graph(self.nodes, "g", [info("x", 1, shape)], [info(out, 1, out_shape)], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        path.write_bytes(model.SerializeToString())
        if self.data is not None:
            with (path.parent / self.data).open("wb") as file:
                file.truncate(self.offset)


def convolutions(folder: Path, nodes: int) -> Path:
    """Residual blocks of 64 channels: Conv, Relu, Conv, Add, Relu."""
    g = Graph(None)
    x = g.node("Conv", "x", g.weight(64, 3, 1, 1))
    while len(g.nodes) < nodes:
        y = g.node("Relu", g.node("Conv", x, g.weight(64, 64, 1, 1)))
        x = g.node("Relu", g.node("Add", g.node("Conv", y, g.weight(64, 64, 1, 1)), x))
    g.save(folder / f"chain{nodes}.onnx", [1, 3, 8, 8], x, [1, 64, 8, 8])
    return folder / f"chain{nodes}.onnx"


def decoder(
    folder: Path, layers: int = 32, hidden: int = 4096, inner: int = 11008, heads: int = 32, seq: int = 16
) -> Path:
    """RMS normalisation, attention with heads, gated feed-forward, as decoders are exported."""
    g = Graph("weights.bin")
    one = numpy_helper.from_array(np.array(1e-5, np.float32), "eps")
    g.weights.append(one)
    split, merge = g.ints(1, seq, heads, hidden // heads), g.ints(1, seq, hidden)
    last = g.ints(-1)

    def norm(x: str) -> str:
        mean = g.node("ReduceMean", g.node("Mul", x, x), last, keepdims=1)
        return g.node("Mul", g.node("Div", x, g.node("Sqrt", g.node("Add", mean, "eps"))), g.weight(hidden))

    x = g.node("MatMul", "x", g.weight(64, hidden))
    for _ in range(layers):
        h = norm(x)
        q, k, v = (g.node("Reshape", g.node("MatMul", h, g.weight(hidden, hidden)), split) for _ in range(3))
        q, v = (g.node("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
        p = g.node("Softmax", g.node("MatMul", q, g.node("Transpose", k, perm=[0, 2, 3, 1])), axis=-1)
        o = g.node("Reshape", g.node("Transpose", g.node("MatMul", p, v), perm=[0, 2, 1, 3]), merge)
        x = g.node("Add", x, g.node("MatMul", o, g.weight(hidden, hidden)))
        h = norm(x)
        a = g.node("MatMul", h, g.weight(hidden, inner))
        gate = g.node("Mul", a, g.node("Sigmoid", a))
        up = g.node("MatMul", h, g.weight(hidden, inner))
        x = g.node("Add", x, g.node("MatMul", g.node("Mul", gate, up), g.weight(inner, hidden)))
    g.save(folder / "decoder.onnx", [1, seq, 64], x, [1, seq, hidden])
    return folder / "decoder.onnx"


def main() -> int:
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        spa.analyze(spa.load(convolutions(folder, 10)))  # imports
        for path in (convolutions(folder, 1000), convolutions(folder, 5000), decoder(folder)):
            start = time.process_time()
            model = spa.load(path)
            loaded = time.process_time()
            coupling = spa.analyze(model)
            end = time.process_time()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"{path.stem:12} {len(coupling.ops):5} nodes, {len(coupling.groups):4} groups: "
                f"load {loaded - start:.2f} s, analyze {end - loaded:.2f} s CPU, peak {peak:.0f} MB"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
