"""Sparsity without fine-tuning: accuracy of trained networks per pattern, and the time for many parameters.

    python benchmarks/sparsity.py FOLDER [NAME [PATTERN...]]     accuracy; FOLDER as in benchmarks/accuracy.py
    python benchmarks/sparsity.py scale [MILLIONS [WIDTH [data | none]]]     2:4 on a decoder: seconds and memory

Accuracy rows: plain magnitude, masked by SparseGPT and refitted, and the default; seconds of the last.
"""

from __future__ import annotations

import math
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


def scale(millions: float, width: int, how: str) -> None:
    """A decoder of square layers whose weights lie in a file (benchmarks/scale.py): 2:4 and written, in this process.

    `how`: data (128 samples of 64 positions; the default criterion) or none (by magnitude)."""
    from scale import decoder

    count = max(1, math.ceil(millions * 1e6 / (7 * width**2)))
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as tmp:
        path = decoder(Path(tmp), count, width, width, max(1, width // 128), seq=64)
        fill(path, rng)
        model = spa.load(path)
        data = {"x": rng.standard_normal((128, 64, 64), np.float32)} if how == "data" else None
        calib = load(data, model) if data else None
        start, cpu = time.perf_counter(), time.process_time()
        result = sparsify(model, "2:4", calib=calib)
        thin = time.perf_counter() - start
        result.model.save(Path(tmp) / "thin.onnx")
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    facts = result.facts["sparsity"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{facts['weights'] / 1e6:.1f} M weights, {width} wide, {facts['layers'][0]['criterion']}: "
        f"thin in {thin:.0f} s, written after {seconds:.0f} s ({cpu:.0f} s of CPU), at most {peak:.1f} GiB"
    )


def fill(path: Path, rng: np.random.Generator) -> None:
    """Weights like trained ones in variance, one at a time; scales of normalisations are one."""
    proto = onnx.load(path, load_external_data=False)
    with (path.parent / "weights.bin").open("r+b") as file:
        for tensor in proto.graph.initializer:
            where = {e.key: e.value for e in tensor.external_data}
            if not where:
                continue
            shape = tuple(tensor.dims)
            w = np.ones(shape, np.float32)
            if len(shape) > 1:
                w = rng.standard_normal(shape, np.float32) * np.float32(shape[0] ** -0.5)
            file.seek(int(where["offset"]))
            w.tofile(file)


if __name__ == "__main__":
    if sys.argv[1] == "scale":
        arguments = [*sys.argv[2:], *("100", "4096", "data")[len(sys.argv) - 2 :]]
        scale(float(arguments[0]), int(arguments[1]), arguments[2])
    else:
        accuracy(Path(sys.argv[1]), sys.argv[2:])
