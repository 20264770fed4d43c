"""Sparsity without fine-tuning: accuracy of trained networks per pattern, and the time for many parameters.

    python benchmarks/sparsity.py FOLDER [NAME [PATTERN...]]     accuracy; FOLDER as in benchmarks/accuracy.py
    python benchmarks/sparsity.py scale [MILLIONS [WIDTH]]       2:4 by SparseGPT on a stack of wide products

Accuracy rows: plain magnitude, masked by SparseGPT and refitted, and the default; seconds of the last.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

import spa
from spa.calibration import load
from spa.passes.sparsify import sparsify
from spa.workbench import workbench

ROWS = {
    "resnet20_cifar10_jpegft": ("unstructured:0.5", "unstructured:0.7", "unstructured:0.8", "2:4", "block4x1:0.5"),
    "resnet56_cifar10_bn": ("2:4",),
    "magika_standard_v3_3": ("2:4",),
    "tf2_mobilenet_v2_1.0_224_imagenet": ("unstructured:0.5", "2:4", "block4x1:0.3", "block4x1:0.5"),
}


def accuracy(folder: Path, names: list[str]) -> None:
    sys.path.insert(0, str(folder))
    import evaluate  # type: ignore[import-not-found]

    print(f"{'network':36} {'pattern':18} {'dense':6} {'plain':6} {'sweep':6} {'ours':6} seconds")
    with tempfile.TemporaryDirectory() as tmp:
        out = Path(tmp) / "out.onnx"

        def score(name: str, model: spa.Model) -> float:
            model.save(out, force=True)
            return float(evaluate.top1(name, out)["value"])

        for name, patterns in ROWS.items():
            if names and name != names[0]:
                continue
            model = workbench(spa.load(folder / "models" / f"{name}.onnx"))
            data = load(evaluate.calib(name, 256), model)
            dense = score(name, model)
            for pattern in names[1:] or patterns:
                plain = score(name, sparsify(model, pattern, distribution="uniform").model)
                sweep = score(
                    name,
                    sparsify(model, pattern, calib=data, criterion="sparsegpt", distribution="uniform").model,
                )
                start = time.perf_counter()
                result = sparsify(model, pattern, calib=data)
                seconds = time.perf_counter() - start
                ours = score(name, result.model)
                print(
                    f"{name:36} {pattern:18} {dense:6.3f} {plain:6.3f} {sweep:6.3f} {ours:6.3f} {seconds:7.0f}",
                    flush=True,
                )


def scale(millions: float, width: int) -> None:
    """Products and ReLUs, first and last beyond those counted; 256 samples of 64 rows."""
    count = max(1, round(millions * 1e6 / width**2))
    rng = np.random.default_rng(0)
    nodes, weights, at = [], [], "x"
    for i in range(count + 2):
        w = rng.standard_normal((width, width), np.float32) * np.float32((2 / width) ** 0.5)
        weights.append(onnx.numpy_helper.from_array(w, f"w{i}"))
        nodes += [
            onnx.helper.make_node("MatMul", [at, f"w{i}"], [f"p{i}"]),
            onnx.helper.make_node("Relu", [f"p{i}"], [f"r{i}"]),
        ]
        at = f"r{i}"
    kind, shape = onnx.TensorProto.FLOAT, ["N", 64, width]
    graph = onnx.helper.make_graph(
        nodes,
        "stack",
        [onnx.helper.make_tensor_value_info("x", kind, shape)],
        [onnx.helper.make_tensor_value_info(at, kind, shape)],
        weights,
    )
    model = spa.load(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8))
    calib = load({"x": rng.standard_normal((256, 64, width), np.float32)}, model)
    start = time.perf_counter()
    result = sparsify(model, "2:4", calib=calib, criterion="sparsegpt")
    facts = result.facts["sparsity"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{facts['weights'] / 1e6:.1f} M weights 2:4 in {time.perf_counter() - start:.0f} s, at most {peak:.1f} GiB")


if __name__ == "__main__":
    if sys.argv[1] == "scale":
        scale(*(float(sys.argv[2]) if len(sys.argv) > 2 else 100.0, int(sys.argv[3]) if len(sys.argv) > 3 else 4096))
    else:
        accuracy(Path(sys.argv[1]), sys.argv[2:])
