"""Compile every network of a corpus and compare with onnxruntime, its optimisations off.

    python benchmarks/corpus.py CORPUS [NAME ...] [--target host wasm] [--results FILE] [--again ok|refused|failed|...] [--limit 120]

CORPUS: a folder of .onnx files, or one with a `fill.py` that has `manifest()`, `load(name)` and `inputs(name)`. Each
network runs in a process of its own for at most `--limit` seconds; one line of JSON each goes to `--results`, and what stands
there is not done again unless `--again` names its outcome. The outcomes: `ok` (error at most 1e-4 of the output's
spread), `refused` (exit 3 and why), `wrong`, `failed`, `slow` (past the limit), `invalid` (onnxruntime cannot run it either).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 1e-4


def corpus(folder: Path) -> Any:
    """The folder's `fill.py` as a module, or None."""
    path = folder / "fill.py"
    if not path.exists():
        return None
    spec = importlib.util.spec_from_file_location("fill", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one(folder: Path, name: str, target: str) -> dict[str, Any]:
    """What became of a network on a target."""
    import onnx
    import onnxruntime as ort

    from spa.codegen.bundle import compile
    from spa.errors import Unsupported

    fill = corpus(folder)
    model = fill.load(name) if fill else onnx.load(folder / f"{name}.onnx")
    if fill:
        feeds = fill.inputs(name)
    else:
        random, initial = np.random.default_rng(0), {t.name for t in model.graph.initializer}
        values = [v for v in model.graph.input if v.name not in initial]
        feeds = {
            v.name: random.standard_normal([d.dim_value or 1 for d in v.type.tensor_type.shape.dim]) for v in values
        }
        feeds = {k: v.astype(np.float32) for k, v in feeds.items()}
    scalars = {v.name for v in model.graph.input if not v.type.tensor_type.shape.dim}
    feeds = {k: v.reshape(()) if k in scalars and v.size == 1 else v for k, v in feeds.items()}
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        want = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))
    except Exception as error:
        return {"outcome": "invalid", "why": str(error)[:200]}
    begin = time.perf_counter()
    try:
        bundle = compile(model, target, shapes={k: v.shape for k, v in feeds.items()}, use_cache=False)
    except Unsupported as error:
        return {"outcome": "refused", "why": str(error)[:300]}
    took = time.perf_counter() - begin
    facts = bundle.manifest["targets"][target]
    begin = time.perf_counter()
    got = bundle.run(feeds, target)
    seconds = time.perf_counter() - begin
    errors = [difference(got[k], v) for k, v in want.items()]
    calls = Counter(row["family"] for row in facts["kernels"])
    return {
        "outcome": "ok" if max(errors) <= TOLERANCE else "wrong",
        "error": max(errors),
        "compile": round(took, 1),
        "run": round(seconds, 2),
        "code": facts["code_bytes"],
        "arena": facts["arena_bytes"],
        "calls": dict(sorted(calls.items())),
    }


def difference(got: Any, want: Any) -> float:
    """Largest difference over the spread of what is wanted; 1 for another shape, or where only one is finite."""
    if got.shape != want.shape:
        return 1.0
    if want.dtype.kind != "f":
        return float((got != want).any())
    a, b = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(b)
    if (np.isfinite(a) != finite).any():
        return 1.0
    spread = max(float(np.ptp(b[finite])), float(np.abs(b[finite]).max()), 1e-30) if finite.any() else 1.0
    return float(np.abs(a - b)[finite].max() / spread) if finite.any() else 0.0


def attempt(folder: Path, name: str, target: str, limit: float) -> dict[str, Any]:
    command = [sys.executable, __file__, str(folder), name, "--target", target, "--one"]
    begin = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"outcome": "slow", "seconds": limit}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return {"outcome": "failed", "why": (said or [f"exit {done.returncode}"])[-1][:300]}
    return {**json.loads(lines[-1]), "seconds": round(time.perf_counter() - begin, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--target", nargs="+", default=["host", "wasm"])
    parser.add_argument("--results", type=Path, default=Path("corpus.jsonl"))
    parser.add_argument("--again", nargs="*", default=[])
    parser.add_argument("--limit", type=float, default=120)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.corpus, arguments.names[0], arguments.target[0])))
        return 0
    fill = corpus(arguments.corpus)
    names = arguments.names or (list(fill.manifest()) if fill else [p.stem for p in arguments.corpus.glob("*.onnx")])
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    if arguments.results.exists():
        for line in arguments.results.read_text().splitlines():
            row = json.loads(line)
            rows[row["network"], row["target"]] = row
    for target in arguments.target:
        for name in sorted(names):
            before = rows.get((name, target))
            if before and before["outcome"] not in arguments.again:
                continue
            row = {"network": name, "target": target, **attempt(arguments.corpus, name, target, arguments.limit)}
            rows[name, target] = row
            with arguments.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
        count = Counter(row["outcome"] for (name, t), row in rows.items() if t == target and name in names)
        print(f"{target}: {dict(count)} of {len(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
