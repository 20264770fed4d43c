"""One budget over channels and patterns (`--sparsity auto`) beside channels alone, on trained networks with real data.

    python benchmarks/joint.py FOLDER [NAME...] [--shares 0.5,0.3] [--target wasm] [--time]

FOLDER as in benchmarks/accuracy.py. Both keep the same share of the multiply-accumulates, thin layers counted by what
they take on the target (`spa.sparsity.speed`). `--time` compiles dense, narrow and joint network and runs them in turn in
one process (one thread): medians of the pairs' ratios, against which the table's promise can be held.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from kernels import feeds_of, opened

import spa
from spa.codegen.bundle import compile
from spa.cost import inspect
from spa.runtime.bench import measure

NETWORKS = (
    "resnet20_cifar10_jpegft",
    "resnet56_cifar10_bn",
    "mobilenet_v1_0.5_160_imagenet",
    "tf2_mobilenet_v2_1.0_224_imagenet",
)


def faster(dense: spa.Model, other: spa.Model, target: str) -> float:
    """Median over pairs of dense time over the other's, the two in turn, one thread."""
    engines = []
    for model in (dense, other):
        bundle = compile(model, target)
        engines.append(opened(bundle, target))
        engines[-1].run(feeds_of(bundle))
    found = measure(engines[1].step, engines[0].step, seconds=5).ratio
    for engine in engines:
        engine.close()
    return float(found or 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=NETWORKS)
    parser.add_argument("--shares", default="0.5,0.3")
    parser.add_argument("--target", default="wasm")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--time", action="store_true")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.folder))
    import evaluate  # type: ignore[import-not-found]

    print(f"machine: {platform.processor() or platform.machine()}; {arguments.samples} calibration samples; top-1")
    print(
        "| network | share | channels alone | and patterns | multiply-accumulates left then | layers | speed | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        for name in arguments.names:
            model = spa.load(arguments.folder / "models" / f"{name}.onnx")
            data = evaluate.calib(name, arguments.samples)
            dense = inspect(model).macs
            for share in map(float, arguments.shares.split(",")):
                scores, seconds, speed = [], [], []
                auto: dict[str, Any] = {"sparsity": "auto", "targets": (arguments.target,)}
                for how in ({}, auto):
                    start = time.perf_counter()
                    result = spa.prune(model, calib=data, macs=share, check=False, **how)
                    seconds.append(round(time.perf_counter() - start))
                    result.model.save(out, force=True)
                    speed.append(f"{faster(model, result.model, arguments.target):.2f}x" if arguments.time else "-")
                    scores.append(100 * float(evaluate.top1(name, out)["value"]))
                assert result.plan is not None
                forms = Counter(p.partition(":")[0] for p in result.plan.sparsity.values())
                narrow = sum(bool(g["removed"]) for g in result.plan.groups)
                left = inspect(result.model).macs / dense
                kinds = ", ".join(f"{n} {f}" for f, n in sorted(forms.items()))
                print(
                    f"| {name} | {share} | {scores[0]:.1f} | {scores[1]:.1f} | {left:.0%} dense, "
                    f"{result.facts['sparsity']['effective_macs'] / dense:.0%} as it runs | {narrow} of "
                    f"{len(result.plan.groups)} groups narrower, {kinds} | {', '.join(speed)} | "
                    f"{seconds[0]}, {seconds[1]} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
