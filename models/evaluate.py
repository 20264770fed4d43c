"""Compare a bundle made from digits.onnx with the network it came from: size, accuracy, and numbers.

spa prune models/digits.onnx -o out/digits --macs 0.6 --target host --shape x:1,1,8,8
python models/evaluate.py out/digits
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

import spa
from spa.codegen.bundle import Bundle
from spa.runtime.run import open_engine, target_of

HERE = Path(__file__).parent
Array = npt.NDArray[Any]


def by_onnxruntime(path: Path, images: Array) -> Array:
    """Logits [N, 10] with graph optimisations off: the numbers that the file itself defines."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.concatenate([np.asarray(session.run(None, {"x": image[None]})[0]) for image in images])


def by_bundle(bundle: Path, images: Array) -> Array:
    engine = open_engine(target_of(bundle, "host"))
    try:
        return np.concatenate([engine.run({"x": image[None]})["logits"] for image in images])
    finally:
        engine.close()


def main(bundle: Path) -> None:
    data = np.load(HERE / "digits.npz")
    images, labels = data["test_x"], data["test_y"]
    pruned = bundle / "model.onnx"
    dense_cost, pruned_cost = (spa.load(p).inspect() for p in (HERE / "digits.onnx", pruned))
    logits = {
        "dense, onnxruntime": by_onnxruntime(HERE / "digits.onnx", images),
        "pruned, onnxruntime": by_onnxruntime(pruned, images),
        "pruned, library": by_bundle(bundle, images),
    }
    sizes = [
        (HERE / "digits.onnx").stat().st_size,
        pruned.stat().st_size,
        sum(f.stat().st_size for f in (bundle / "host").iterdir()),
    ]
    table = Table("", "parameters", "MACs", "bytes", "test accuracy")
    for (name, found), cost, size in zip(logits.items(), [dense_cost, pruned_cost, pruned_cost], sizes, strict=True):
        accuracy = float(np.mean(found.argmax(1) == labels))
        table.add_row(name, f"{cost.params:,}", f"{cost.macs:,}", f"{size:,}", f"{accuracy:.2%}")
    console = Console()
    console.print(table)
    _, expected, got = logits.values()
    error = float(np.abs(got - expected).max())
    console.print(f"largest difference of the library to onnxruntime over {len(images)} images: {error:.1e}")
    assert Bundle.load(bundle).targets and error < 1e-3, "the library does not compute what the network does"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
