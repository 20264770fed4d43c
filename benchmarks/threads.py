"""What threads are worth on a machine that has no free cores to show it: every thread's share timed by itself.

    python benchmarks/threads.py [NETWORK ...] [--threads 2 4]
    python benchmarks/threads.py [NETWORK ...] --run native|wasmtime|node|chromium [--threads 2]

Each kernel of a network (networks.py, or a .onnx file) is called as one of a team, share after share, in one thread. A run
with so many threads takes as long as the slowest share of each kernel, one after the other, and as long as meeting at
barriers, for which 0.5 us each are added. What threads take from each other in shared caches and memory is not in it.

With --run, on a machine that has the cores: whole networks with one thread and with so many, in turn, in that engine.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from networks import NETWORKS

from spa.codegen import dispatch, kernels, tvm_api
from spa.codegen.converters import CONVERTERS
from spa.codegen.plan_memory import plan_memory
from spa.codegen.prepare import interface, prepare
from spa.codegen.schedule import schedule
from spa.codegen.target import resolve
from spa.runtime.toolchain import run_zig

BARRIER = 0.5e-6  # seconds
ROUNDS = 15
GLUE = """
#include <stdint.h>
int32_t net__barrier(void *team) { return 0; }
int32_t net__split(const int32_t *sums, int32_t n, int32_t task, int32_t tasks) {
    const int64_t target = ((int64_t)(sums[n] - sums[0]) + 4LL * n) * task / tasks;
    int32_t b = 0;
    while (b < n && sums[b] - sums[0] + 4LL * b < target) b++;
    return b;
}
"""


def shares(model: onnx.ModelProto, counts: list[int]) -> list[tuple[str, dict[int, float]]]:
    """For each call: its kernel, and by number of threads the seconds of the slowest share."""
    target = resolve("host")
    prepared = prepare(model, {}, tvm_api.imported_ops() | frozenset(CONVERTERS))
    inputs, outputs = interface(prepared)
    chosen = dispatch.dispatch(prepared, target, kernels.FAMILIES)
    own = {op: served[0][1].build() for op, served in chosen.kernels.items()}
    declared = {op: served[0][0].output for op, served in chosen.kernels.items()}
    module = tvm_api.import_onnx(chosen.model, declared, CONVERTERS)
    lowered = schedule(tvm_api.lower(module, inputs, outputs, target, own), own)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        compiled = tvm_api.emit(lowered, target, {k: f"k_{k}" for k in lowered.kernels}, work, "net")
        (work / "k.o").write_bytes(compiled.data)
        (work / "glue.c").write_text(GLUE)
        done = run_zig(["cc", "-target", target.zig, "-O2", "-shared", "k.o", "glue.c", "-o", "k.so", "-lm"], work)
        assert done.returncode == 0, done.stderr
        library = ctypes.CDLL(str(work / "k.so"))
    program = lowered.program
    layout = plan_memory(program, compiled.scratch)
    keep: list[Any] = []

    def memory(size: int) -> int:
        block = np.zeros(size + 64, np.uint8)
        keep.append(block)
        return int(block.ctypes.data + -block.ctypes.data % 64)

    arena, weights = memory(layout.arena_bytes), memory(layout.weight_bytes)
    for const, at in zip(program.consts, layout.consts, strict=True):
        raw = np.ascontiguousarray(const)
        ctypes.memmove(weights + at, raw.ctypes.data, raw.nbytes)
    places = {"input": [memory(t.nbytes) for t in inputs], "const": [weights + at for at in layout.consts]}
    results = [memory(t.nbytes) for t in outputs]
    places["value"] = [
        results[layout.direct[i]] if i in layout.direct else arena + at for i, at in enumerate(layout.values)
    ]
    found = []
    for call, scratch in zip(program.calls, layout.scratch, strict=True):
        function = getattr(library, f"k_{call.kernel}")
        pointers = [ctypes.c_void_p(places[a.kind][a.index]) for a in call.args] + [ctypes.c_void_p(arena + scratch)]
        team = compiled.teams.get(call.kernel)
        if team is None:
            seconds = best(function, pointers)
            found.append((call.kernel, dict.fromkeys([1, *counts], seconds)))
            continue
        pointers.append(ctypes.c_void_p(arena + scratch + team.offset))
        times = {
            n: max(best(function, [*pointers, ctypes.c_int(task), ctypes.c_int(n), None]) for task in range(n))
            for n in [1, *counts]
        }
        found.append((call.kernel, times))
    return found


def run(model: onnx.ModelProto, name: str, engine: str, count: int) -> None:
    """The network with one thread and with so many; in wasm first the plain module against one thread of the other."""
    from spa.codegen.bundle import compile
    from spa.runtime.bench import measure
    from spa.runtime.load import target_of
    from spa.runtime.run import open_engine

    target = "host" if engine == "native" else "wasm"
    built, plain = (compile(model, target, name=name, wasm_threads=threads) for threads in (True, False))
    feeds = {t["name"]: np.zeros(t["shape"], t["dtype"]) for t in built.manifest["inputs"]}
    one = open_engine(target_of(plain.path), engine)
    for threads in (count,) if engine == "native" else (1, count):  # natively both are the same library
        other = open_engine(target_of(built.path), engine, threads, beside=one)
        for subject in (one, other):
            subject.run(feeds)
        timing = measure(other.step, one.step, seconds=8)
        assert timing.theirs is not None
        print(
            f"{name:16} {engine}: {np.median(timing.theirs):8.2f} ms, by {threads} {np.median(timing.ours):8.2f} ms:"
            f" {timing.ratio:.2f}x ({timing.ratio_at(10):.2f} - {timing.ratio_at(90):.2f})",
            flush=True,
        )
        other.close()
    one.close()


def best(function: Any, arguments: list[Any]) -> float:
    fastest = float("inf")
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        function(*arguments)
        fastest = min(fastest, time.perf_counter() - begin)
    return fastest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["mobilenet_v1", "mobilenet_v2", "resnet50", "encoder"])
    parser.add_argument("--threads", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--worst", type=int, default=0, help="show so many kernels that lose most by two threads")
    parser.add_argument(
        "--run", metavar="ENGINE", help="whole networks in this engine: native, wasmtime, node, chromium"
    )
    options = parser.parse_args()
    for name in options.networks:
        model = onnx.load(name) if name.endswith(".onnx") else NETWORKS[name]()
        if options.run:
            for count in options.threads:
                run(model, Path(name).stem, options.run, count)
            continue
        rows = shares(model, options.threads)
        alone = sum(times[1] for _, times in rows)
        told = {n: sum(times[n] + BARRIER for _, times in rows) for n in options.threads}
        print(f"{name:16} 1: {alone * 1e3:7.2f} ms  " + "  ".join(f"{n}: {alone / t:.2f}x" for n, t in told.items()))
        n = options.threads[0]
        for kernel, times in sorted(rows, key=lambda row: row[1][1] / n - row[1][n])[: options.worst]:
            print(f"    {kernel:50} {times[1] * 1e6:8.1f} us, {n} threads {times[n] * 1e6:8.1f} us")


if __name__ == "__main__":
    main()
