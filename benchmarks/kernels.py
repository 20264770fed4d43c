"""Time the kernels: whole networks in turn with onnxruntime (one thread each), and where the time goes.

    python benchmarks/kernels.py [NETWORK ...] [--target host|wasm] [--sparsity 0.85] [--block 4x1] [--bits 8] [--profile]

NETWORK: mobilenet_v1, mobilenet_v2, resnet50 (random weights, see networks.py), or a .onnx file. For wasm the opponent
is still onnxruntime on this machine, unless `--web` asks for onnxruntime-web, which npm installs where there is none.
`--profile` calls every kernel by itself, again and again: microseconds, GMAC/s of the weights that are not zero.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from networks import NETWORKS, SIZES

from spa.codegen.bundle import Bundle, compile
from spa.runtime.bench import measure
from spa.runtime.engine import Engine
from spa.runtime.load import target_of
from spa.runtime.opponents import Web, onnxruntime_step
from spa.runtime.run import open_engine


def feeds_of(bundle: Bundle) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {t["name"]: random.standard_normal(t["shape"]).astype(np.float32) for t in bundle.manifest["inputs"]}


def opened(bundle: Bundle, target: str) -> Engine:
    return open_engine(target_of(bundle.path, target), "node" if target == "wasm" else None)


def whole(name: str, model: onnx.ModelProto, target: str, web: bool, against: onnx.ModelProto | None = None) -> None:
    """`against`: what the opponent runs, if not the same."""
    begin = time.perf_counter()
    bundle = compile(model, target, use_cache=False)
    took = time.perf_counter() - begin
    facts = bundle.manifest["targets"][target]
    feeds, engine = feeds_of(bundle), opened(bundle, target)
    got = engine.run(feeds)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    want = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))
    error = max(float(np.abs(got[k] - v).max() / max(np.ptp(v), 1e-30)) for k, v in want.items())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(against or model, path)
        other_engine = Web(path, feeds) if web else None
        theirs = onnxruntime_step(path, feeds, 1) if other_engine is None else other_engine.step
        timing = measure(engine.step, theirs, seconds=6)
        engine.close()
        if other_engine is not None:
            other_engine.close()
    ours, other = np.median(timing.ours), np.median(timing.theirs if timing.theirs is not None else [np.nan])
    print(
        f"{name:32} {target}: {ours:8.2f} ms, {'web' if web else 'ort'} {other:8.2f} ms, ratio {timing.ratio:.2f} "
        f"({len(timing.ours)} runs), error {error:.0e}, compiled in {took:.1f} s, code {facts['code_bytes'] / 1e3:.0f} KB",
        flush=True,
    )


def profile(model: onnx.ModelProto, target: str = "host") -> list[tuple[str, str, float, float]]:
    """(layer, kernel, microseconds, GMAC/s) of each call, called again and again: its operands lie in the caches."""
    bundle = compile(model, target)
    engine = opened(bundle, target)
    engine.run(feeds_of(bundle))
    rows = []
    for part, row in enumerate(bundle.manifest["targets"][target]["kernels"]):
        seconds = float(np.median([engine.part(part) for _ in range(16)][1:]))
        kernel = " ".join(filter(None, (row.get("family"), row.get("format"), row.get("tile"))))
        rows.append((row["layer"], kernel, 1e6 * seconds, row.get("macs", 0) / seconds / 1e9))
    engine.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["mobilenet_v1"])
    parser.add_argument("--target", default="host")
    parser.add_argument("--sparsity", type=float, default=0.0)
    parser.add_argument("--block", default="1x1")
    parser.add_argument("--bits", type=int, default=32, help="decoder_step: of its weights, not the opponent's")
    parser.add_argument("--web", action="store_true")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    rows, columns = (int(n) for n in arguments.block.split("x"))
    print(f"machine: {platform.processor() or platform.machine()}, onnxruntime {ort.__version__}, one thread")
    for name in arguments.networks:
        build = NETWORKS.get(name)
        model = build(SIZES.get(name, 224), arguments.sparsity, (rows, columns)) if build else onnx.load(name)
        if arguments.profile:
            table = profile(model, arguments.target)
            for layer, what, us, gmacs in table:
                print(f"{layer:12} {us:8.1f} us {gmacs:6.1f} GMAC/s  {what}")
            print(f"{name}: {sum(row[2] for row in table) / 1e3:.2f} ms")
        else:
            title = f"{name} {arguments.sparsity:.0%} {arguments.block}" if arguments.sparsity else name
            against = None
            if build is not None and arguments.bits < 32:
                title += f" int{arguments.bits}"
                against = model
                model = NETWORKS[name](SIZES[name], arguments.sparsity, (rows, columns), bits=arguments.bits)
            whole(title, model, arguments.target, arguments.web, against)


if __name__ == "__main__":
    main()
