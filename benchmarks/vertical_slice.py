"""Prune, compile and run a folder of networks on every target, and compare each artifact with onnxruntime.

    python benchmarks/vertical_slice.py FOLDER [NAME ...]

Per network and budget (`--ratio 0.5`, `--macs 0.5`): verification, share of the multiply-accumulates kept, seconds to
prune, and per artifact seconds to compile, bytes of code, and the largest difference from onnxruntime (optimisations
off) on the pruned network over the spread of the output, on one random input.
"""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import spa
from spa.codegen.bundle import Bundle, batch_of_one
from spa.cost import inspect
from spa.inputs import draw
from spa.verification import Session, difference

BUDGETS: tuple[dict[str, float], ...] = ({"ratio": 0.5}, {"macs": 0.5})
ENGINES = (("host", None), ("arm", None), ("wasm", "wasmtime"), ("wasm", "node"))


def one(path: Path, budget: dict[str, float]) -> list[dict[str, Any]]:
    model = spa.load(path)
    start = time.perf_counter()
    result = spa.prune(model, **budget)
    seconds = time.perf_counter() - start
    kept = inspect(result.model).macs / inspect(model).macs
    verified = result.facts["verified"]
    row = {"model": path.stem, "budget": " ".join(f"{k} {v}" for k, v in budget.items()), "verified": verified["ok"]}
    row |= {"error": verified["max_error"], "macs": kept, "prune s": seconds}
    shapes = batch_of_one(result.model.to_proto(), {})
    sizes = {"": 1}
    for value in result.model.ir.graph.inputs:
        if value.name in shapes and value.shape is not None and not isinstance(value.shape[0], int):
            sizes[str(value.shape[0].value)] = shapes[value.name][0]
    feeds = draw(result.model, seed=1, sizes=sizes)
    session = Session(result.model)
    expected = dict(zip(session.outputs, session.run(feeds), strict=True))
    rows = []
    bundles: dict[str, tuple[Bundle, float]] = {}
    for target, engine in ENGINES:
        if target not in bundles:
            start = time.perf_counter()
            bundles[target] = spa.compile(result.model, target), time.perf_counter() - start
        bundle, took = bundles[target]
        got = bundle.run(feeds, target, engine)
        error = max(difference(expected[name], got[name]) for name in expected)
        code = bundle.manifest["targets"][target]["code_bytes"]
        rows.append(row | {"artifact": engine or target, "compile s": took, "code": code, "artifact error": error})
    return rows


def main() -> int:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    print(f"machine: {platform.processor() or platform.machine()}, Python {platform.python_version()}")
    print(
        f"{'model':34} {'budget':10} {'verified':16} {'macs':6} {'prune s':7} {'artifact':9} {'compile s':9} {'code':>7} error"
    )
    worst = 0.0
    for path in sorted(folder.glob("*.onnx")):
        if names and path.stem not in names:
            continue
        for budget in BUDGETS:
            for r in one(path, budget):
                worst = max(worst, r["artifact error"])
                proof = f"{'ok' if r['verified'] else 'NO'} {r['error']:.1e}"
                print(
                    f"{r['model']:34} {r['budget']:10} {proof:16} {r['macs']:.4f} {r['prune s']:7.2f} {r['artifact']:9} "
                    f"{r['compile s']:9.2f} {r['code']:7} {r['artifact error']:.1e}",
                    flush=True,
                )
    print(f"largest artifact error: {worst:.1e} of the output's spread")
    return int(not np.isfinite(worst) or worst > 1e-4)


if __name__ == "__main__":
    sys.exit(main())
