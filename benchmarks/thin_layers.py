"""Layers for which a sparse kernel was chosen, against the same layers with dense weights: is any slower?

    python benchmarks/thin_layers.py [--target host|wasm] [--densities 0.8,0.7,0.5,0.3,0.15] [--blocks 1x1,4x1,8x1,2x4]

Layers as networks have them (1x1 and 3x3 convolutions, products of many rows and of one), each thinned at random to each
density in each pattern (2x4: two of four along the inputs). Each density is one network of independent layers, with a dense
twin; kernel i of one and kernel i of the other run in turn, on operands that lie in the caches as far as they fit: a
dense layer's weights come from as near as they can, which favours the dense one. Ratio: dense / sparse; the aim is that
none is below 0.98. What runs dense because sparse was predicted to be slower is counted only.
"""

from __future__ import annotations

import argparse
import platform
from dataclasses import dataclass

import numpy as np
import onnx
from kernels import feeds_of, opened
from networks import TWO_OF_FOUR, Writer
from onnx import TensorProto, helper

from spa.codegen.bundle import compile
from spa.runtime.bench import measure


@dataclass(frozen=True)
class Shape:
    """A convolution of `size` x `size` pixels, or (`kernel` 0) a product of `size` rows."""

    inputs: int
    outputs: int
    size: int
    kernel: int = 1

    def __str__(self) -> str:
        what = f"{self.kernel}x{self.kernel}" if self.kernel else "matmul"
        return f"{what} {self.inputs}->{self.outputs} {self.size if self.kernel == 0 else f'{self.size}x{self.size}'}"


SHAPES = (
    Shape(32, 64, 112),
    Shape(96, 24, 56),
    Shape(128, 128, 56),
    Shape(144, 32, 28),
    Shape(256, 256, 28),
    Shape(512, 512, 14),
    Shape(1024, 1024, 7),
    Shape(320, 1280, 7),
    Shape(64, 64, 56, 3),
    Shape(128, 128, 28, 3),
    Shape(256, 256, 14, 3),
    Shape(512, 512, 7, 3),
    Shape(384, 384, 128, 0),
    Shape(384, 1536, 128, 0),
    Shape(768, 768, 16, 0),
    Shape(1024, 1024, 1, 0),
    Shape(2048, 2048, 1, 0),
)


def network(density: float, block: tuple[int, int]) -> onnx.ModelProto:
    """All shapes side by side, each with an input and an output of its own."""
    w = Writer(1 - density, block)
    inputs, outputs = [], []
    for i, s in enumerate(SHAPES):
        x, first = f"x{i}", len(w.nodes)
        if s.kernel:
            y = w.conv(x, s.inputs, s.outputs, s.kernel)
            sides = [s.size, s.size]
            shapes = (1, s.inputs, *sides), (1, s.outputs, *sides)
        else:
            y = w.linear(x, s.inputs, s.outputs)
            shapes = (s.size, s.inputs), (s.size, s.outputs)
        w.nodes[first].name = str(s)
        inputs.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, shapes[0]))
        outputs.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, shapes[1]))
    graph = helper.make_graph(w.nodes, "layers", inputs, outputs, w.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def compare(target: str, density: float, block: tuple[int, int]) -> list[float]:
    """Ratios of the layers that run sparse."""
    thin, dense = (compile(network(d, block if d < 1 else (1, 1)), target) for d in (density, 1.0))
    engines = [opened(bundle, target) for bundle in (thin, dense)]
    for engine, bundle in zip(engines, (thin, dense), strict=True):
        engine.run(feeds_of(bundle))
    kernels = [bundle.manifest["targets"][target]["kernels"] for bundle in (thin, dense)]
    ratios = []
    for i, (row, twin) in enumerate(zip(*kernels, strict=True)):
        if row.get("format", "dense") == "dense":
            continue
        timing = measure(lambda i=i: engines[0].part(i), lambda i=i: engines[1].part(i), seconds=0.6)  # type: ignore[misc]
        ratio = timing.ratio or 0.0
        ratios.append(ratio)
        print(
            f"{row['layer']:26} {density:5.2f} {block[0]}x{block[1]}  {row['format']:10} {row['tile']:22} "
            f"{1e3 * np.median(timing.ours):8.1f} us, dense {twin['tile']:22} ratio {ratio:5.2f}"
            + ("  SLOWER" if ratio < 0.98 else ""),
            flush=True,
        )
    for engine in engines:
        engine.close()
    print(f"density {density:.2f}, {block[0]}x{block[1]}: {len(ratios)} of {len(SHAPES)} run sparse", flush=True)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="host")
    parser.add_argument("--densities", default="0.8,0.7,0.5,0.3,0.15")
    parser.add_argument("--blocks", default="1x1,4x1,8x1,2x4")
    arguments = parser.parse_args()
    print(f"machine: {platform.processor() or platform.machine()}, one thread")
    found: list[float] = []
    for block in (tuple(int(n) for n in b.split("x")) for b in arguments.blocks.split(",")):
        densities = [0.5] if block == TWO_OF_FOUR else [float(d) for d in arguments.densities.split(",")]
        for density in densities:
            found += compare(arguments.target, density, (block[0], block[1]))
    slow = sum(r < 0.98 for r in found)
    print(f"{len(found)} layers run sparse: slowest {min(found):.2f}, median {np.median(found):.2f}, {slow} below 0.98")


if __name__ == "__main__":
    main()
