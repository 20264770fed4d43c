"""Patterns over many networks: does each thin network still run, and has every layer the pattern that is claimed?

    python benchmarks/patterns.py CORPUS [--data N] [--patterns 2:4,taps4] [--every K] [--largest N] [--limit SECONDS] [NAME...]

CORPUS holds `fill.py`, with manifest(), load(name) and inputs(name, seed). The judge of patterns is tests/check_patterns.py,
which knows nothing of spa; that of running, onnxruntime. `--data N`: N drawn samples to fit by; without, by magnitude.
A network whose dense form onnxruntime does not run is skipped. Each network has a process of its own and a time limit.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing as mp
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx

PATTERNS = ("2:4", "block4x1:0.5", "unstructured:0.7", "kernel:0.5", "taps4")


def runs(proto: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def judged(corpus: str, name: str, patterns: list[str], samples: int, answers: Any) -> None:
    """One line per pattern: ("ok", layers) or ("fault", text)."""
    sys.path[:0] = [corpus, str(Path(__file__).parents[1] / "tests")]
    from check_patterns import violations

    import spa
    from spa.passes.sparsify import sparsify

    fill = importlib.import_module("fill")
    proto = fill.load(name)
    feeds = fill.inputs(name, seed=0)
    try:
        before = runs(proto, feeds)
    except Exception as error:  # onnxruntime's errors share no type
        answers.put(("skip", "", f"dense: {str(error).splitlines()[0][:160]}", 0.0))
        return
    for pattern in patterns:
        start = time.perf_counter()
        try:
            model = spa.load(proto)
            calib = [fill.inputs(name, seed=1 + i) for i in range(samples)] or None
            result = sparsify(model, pattern, calib=calib)
            claimed = {x["weight"]: x["pattern"] for x in result.facts["sparsity"]["layers"]}
            thin = result.model.to_proto()
            wrong = violations(thin, claimed)
            after = runs(thin, feeds)
            if [np.shape(a) for a in after] != [np.shape(b) for b in before]:
                wrong.append("other shapes come out")
            if sum(np.isfinite(a).all() for a in map(np.asarray, after) if a.dtype.kind == "f") < sum(
                np.isfinite(a).all() for a in map(np.asarray, before) if a.dtype.kind == "f"
            ):
                wrong.append("not finite")
            found = ("fault", wrong[0]) if wrong else ("ok", len(claimed))
        except Exception as error:  # whatever it is, it is what we look for
            found = ("fault", f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
        answers.put((found[0], pattern, found[1], time.perf_counter() - start))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--data", type=int, default=0)
    parser.add_argument("--patterns", default=",".join(PATTERNS))
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--largest", type=float, default=np.inf, help="parameters")
    parser.add_argument("--limit", type=float, default=120)
    options = parser.parse_args()
    sys.path.insert(0, options.corpus)
    patterns = options.patterns.split(",")
    manifest = importlib.import_module("fill").manifest()
    every = [name for name, entry in manifest.items() if entry["params"] <= options.largest]
    counts: Counter[str] = Counter()
    layers = 0
    for name in options.names or every[:: options.every]:
        answers = mp.get_context("spawn").Queue()
        worker = mp.get_context("spawn").Process(
            target=judged, args=(options.corpus, name, patterns, options.data, answers)
        )
        worker.start()
        worker.join(options.limit)
        late = worker.is_alive()
        if late:
            worker.kill()
            worker.join()
        told, skipped = 0, False
        while not answers.empty():
            kind, pattern, what, seconds = answers.get()
            counts[kind] += 1
            told += 1
            skipped |= kind == "skip"
            layers += what if kind == "ok" else 0
            if kind != "ok":
                print(f"{name:40} {pattern:18} {kind}: {what} ({seconds:.0f} s)", flush=True)
        if told < len(patterns) and not skipped:
            counts["late" if late else "died"] += 1
            print(f"{name:40} {'late' if late else f'died ({worker.exitcode})'} after {told} patterns", flush=True)
    print(", ".join(f"{n} {kind}" for kind, n in counts.items()), f"; {layers} layers with their pattern")
    return int(bool(counts["fault"] + counts["died"]))


if __name__ == "__main__":
    sys.exit(main())
