"""Accuracy without fine-tuning: trained networks pruned to shares of their multiply-accumulates, on their real data.

    python benchmarks/accuracy.py FOLDER [NAME [SHARE]]

FOLDER holds `evaluate.py` (with `calib(NAME)`, `TASKS` and the metric) and `models/NAME.onnx`. Per row: with 256
calibration samples, with drawn ones (`synthetic`), and plain l2 without repair; seconds of the first.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import spa
from spa.calibration import load

ROWS = {
    "tf2_mobilenet_v2_1.0_224_imagenet": (0.9, 0.8, 0.75, 0.6),
    "mobilenet_v1_0.5_160_imagenet": (0.8,),
    "resnet20_cifar10_jpegft": (0.75, 0.5),
    "resnet56_cifar10_bn": (0.5,),
    "dscnn_kws": (0.6,),
    "lstm_mnist": (0.6,),
    "magika_standard_v3_3": (0.6,),
}


def main() -> int:
    folder = Path(sys.argv[1])
    sys.path.insert(0, str(folder))
    import evaluate  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as tmp:
        out = Path(tmp) / "out.onnx"

        def score(name: str, model: spa.Model) -> float:
            model.save(out, force=True)
            return float(evaluate.top1(name, out)["value"])

        print(f"{'network':36} {'macs':5} {'dense':6} {'data':6} {'drawn':6} {'l2':6} seconds")
        for name, shares in ROWS.items():
            if len(sys.argv) > 2 and name != sys.argv[2]:
                continue
            model = spa.load(folder / "models" / f"{name}.onnx")
            dense = score(name, model.clone())
            data = load(evaluate.calib(name, 256), model)
            for share in shares if len(sys.argv) < 4 else (float(sys.argv[3]),):
                cells: list[Any] = []
                for calib in (data, "synthetic", None):
                    start = time.perf_counter()
                    result = spa.prune(model, macs=share, calib=calib)
                    cells += [score(name, result.model), time.perf_counter() - start]
                print(
                    f"{name:36} {share:5.2f} {dense:6.3f} {cells[0]:6.3f} {cells[2]:6.3f} {cells[4]:6.3f} {cells[1]:7.0f}"
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
