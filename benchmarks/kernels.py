"""Time the kernels: whole networks in turn with onnxruntime (one thread each), and where the time goes.

    python benchmarks/kernels.py [NETWORK ...] [--target host|wasm] [--sparsity 0.85] [--block 4x1] [--int8] [--profile]

NETWORK: mobilenet_v1, mobilenet_v2, resnet50 (random weights, see networks.py), or a .onnx file. For wasm the opponent
is still onnxruntime on this machine, unless `--web FOLDER` names a folder in which npm has installed onnxruntime-web.
`--profile` (host only) calls every kernel by itself: microseconds, GMAC/s of the layer's dense work.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from networks import NETWORKS, SIZES

from spa.codegen import dispatch, kernels, tvm_api
from spa.codegen.bundle import compile
from spa.codegen.converters import CONVERTERS
from spa.codegen.plan_memory import plan_memory
from spa.codegen.prepare import interface, prepare
from spa.codegen.schedule import schedule
from spa.codegen.target import resolve
from spa.runtime.bench import measure
from spa.runtime.load import target_of
from spa.runtime.run import open_engine
from spa.runtime.toolchain import run_zig


def onnxruntime_step(model: onnx.ModelProto, feeds: dict[str, Any]) -> Callable[[], float]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = 1, 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def step() -> float:
        begin = time.perf_counter()
        session.run(None, feeds)
        return time.perf_counter() - begin

    return step


WEB = """
const ort = require('onnxruntime-web'); const fs = require('fs');
ort.env.wasm.numThreads = 1; ort.env.wasm.simd = true;
(async () => {
  const s = await ort.InferenceSession.create(fs.readFileSync(process.argv[2]), {executionProviders: ['wasm']});
  const shape = JSON.parse(process.argv[3]);
  const x = new ort.Tensor('float32', new Float32Array(shape.reduce((a, b) => a * b)).map(() => Math.random()), shape);
  for await (const line of require('readline').createInterface({input: process.stdin})) {
    const t = performance.now(); await s.run({[s.inputNames[0]]: x}); console.log(performance.now() - t);
  }
})();
"""


def web_step(model: onnx.ModelProto, feeds: dict[str, Any], folder: Path) -> Callable[[], float]:
    """onnxruntime-web in Node, one thread."""
    path = Path(tempfile.mkdtemp()) / "model.onnx"
    onnx.save(model, path)
    (folder / "spa_bench.cjs").write_text(WEB)
    (shape,) = (list(v.shape) for v in feeds.values())
    command = ["node", "spa_bench.cjs", str(path), json.dumps(shape)]
    node = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert node.stdin and node.stdout

    def step() -> float:
        node.stdin.write("\n")
        node.stdin.flush()
        return float(node.stdout.readline()) / 1e3

    return step


def whole(
    name: str, model: onnx.ModelProto, target: str, web: Path | None, against: onnx.ModelProto | None = None
) -> None:
    """`against`: what the opponent runs, if not the same."""
    begin = time.perf_counter()
    bundle = compile(model, target, use_cache=False)
    took = time.perf_counter() - begin
    facts = bundle.manifest["targets"][target]
    random = np.random.default_rng(0)
    feeds = {t["name"]: random.standard_normal(t["shape"]).astype(np.float32) for t in bundle.manifest["inputs"]}
    engine = open_engine(target_of(bundle.path, target), "node" if target == "wasm" else None)
    got = engine.run(feeds)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    want = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))
    error = max(float(np.abs(got[k] - v).max() / max(np.ptp(v), 1e-30)) for k, v in want.items())
    theirs = onnxruntime_step(against or model, feeds) if web is None else web_step(against or model, feeds, web)
    timing = measure(engine.step, theirs, seconds=6)
    engine.close()
    ours, other = np.median(timing.ours), np.median(timing.theirs if timing.theirs is not None else [np.nan])
    print(
        f"{name:32} {target}: {ours:8.2f} ms, {'web' if web else 'ort'} {other:8.2f} ms, ratio {timing.ratio:.2f} "
        f"({len(timing.ours)} runs), error {error:.0e}, compiled in {took:.1f} s, code {facts['code_bytes'] / 1e3:.0f} KB",
        flush=True,
    )


def profile(model: onnx.ModelProto, target_name: str = "host") -> list[tuple[str, str, float, float]]:
    """(layer, kernel, microseconds, GMAC/s) of each call."""
    target = resolve(target_name)
    prepared = prepare(model, {}, tvm_api.imported_ops() | frozenset(CONVERTERS))
    inputs, outputs = interface(prepared)
    chosen = dispatch.dispatch(prepared, target, kernels.FAMILIES)
    own = {op: served[0][1].build() for op, served in chosen.kernels.items()}
    module = tvm_api.import_onnx(chosen.model, {op: s[0][0].output for op, s in chosen.kernels.items()}, CONVERTERS)
    lowered = schedule(tvm_api.lower(module, inputs, outputs, target, own), own)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        compiled = tvm_api.emit(lowered, target, {k: f"k_{k}" for k in lowered.kernels}, work)
        (work / "k.o").write_bytes(compiled.data)
        done = run_zig(["cc", "-target", target.zig, "-shared", "k.o", "-o", "k.so", "-lm"], work)
        assert done.returncode == 0, done.stderr
        library = ctypes.CDLL(str(work / "k.so"))
    program = lowered.program
    layout = plan_memory(program, compiled.scratch)

    def memory(size: int) -> int:
        block = np.zeros(size + 64, np.uint8)
        keep.append(block)
        return block.ctypes.data + -block.ctypes.data % 64

    keep: list[Any] = []
    arena, weights = memory(layout.arena_bytes), memory(layout.weight_bytes)
    for const, at in zip(program.consts, layout.consts, strict=True):
        raw = np.ascontiguousarray(const)
        ctypes.memmove(weights + at, raw.ctypes.data, raw.nbytes)
    places = {"input": [memory(t.nbytes) for t in inputs], "const": [weights + at for at in layout.consts]}
    results = [memory(t.nbytes) for t in outputs]
    places["value"] = [
        results[layout.direct[i]] if i in layout.direct else arena + at for i, at in enumerate(layout.values)
    ]
    pending = {op: iter(served) for op, served in chosen.kernels.items()}
    rows = []
    for call, scratch in zip(program.calls, layout.scratch, strict=True):
        function = getattr(library, f"k_{call.kernel}")
        pointers = [ctypes.c_void_p(places[a.kind][a.index]) for a in call.args] + [ctypes.c_void_p(arena + scratch)]
        function(*pointers)
        times = []
        for _ in range(15):
            begin = time.thread_time()  # not of the others on this machine
            function(*pointers)
            times.append(time.thread_time() - begin)
        name, what, macs = call.kernel, "tvm", 0
        if call.kernel in pending:
            layer, kernel = next(pending[call.kernel])
            shape = layer.inputs[0].shape if layer.inputs[0] else ()
            name, what = (
                layer.name,
                f"{kernel.family} {kernel.format} {kernel.tile} {list(shape)}->{list(layer.output.shape)}",
            )
            weight = layer.consts.get(1)
            if weight is not None and layer.op == "Conv":
                macs = math.prod(layer.output.shape) * math.prod(weight.shape[1:])
            elif weight is not None:
                macs = math.prod(shape) * weight.size // (shape[-1] if shape else 1)
        rows.append((name, what, 1e6 * float(np.median(times)), macs / float(np.median(times)) / 1e9))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["mobilenet_v1"])
    parser.add_argument("--target", default="host")
    parser.add_argument("--sparsity", type=float, default=0.0)
    parser.add_argument("--block", default="1x1")
    parser.add_argument("--int8", action="store_true", help="decoder_step: weights in int8; the opponent's stay float")
    parser.add_argument("--web", type=Path)
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
            if build is not None and arguments.int8:
                title += " int8"
                against, model = model, NETWORKS[name](SIZES[name], arguments.sparsity, (rows, columns), int8=True)
            whole(title, model, arguments.target, arguments.web, against)


if __name__ == "__main__":
    main()
