"""Everything that needs a GPU, in one command: right results, no bad accesses, and how fast, on the card at hand.

    python benchmarks/cuda.py [numerics] [sanitizer] [timings] [networks] [--out benchmarks/results/cuda.json]

numerics    every kernel of the tables on shapes that no tile divides, dense and in all patterns, against numpy
sanitizer   the numerics again under compute-sanitizer (memcheck and racecheck), where it is installed
timings     products of n x n x n in fp16, dense and 2:4, against torch (cuBLAS) and its semi-structured form (cuSPARSELt)
networks    two networks of pictures and an encoder as bundles, launches replayed as a graph, against onnxruntime's CUDA and TensorRT providers

All of them without a name. Needs nvcc and a driver; torch, onnxruntime-gpu and compute-sanitizer are used if they are there.
Times are CUDA events around graphs of many launches; the median of several. Writes JSON and prints tables. Exit 1 where a
result is wrong, 4 where there is no driver or no compiler.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spa.codegen.bundle import compile
from spa.codegen.cuda import toolchain
from spa.codegen.cuda.cost import arch_of
from spa.codegen.cuda.families import Candidate, candidates
from spa.codegen.cuda.layers import CHANNELS_LAST, matrix_of
from spa.codegen.cuda.words import OPERANDS
from spa.codegen.layer import Kernel, Layer
from spa.codegen.program import Tensor
from spa.codegen.tvm_api.cuda import emit_cuda
from spa.errors import MissingTool, SpaError
from spa.runtime.cuda.driver import Driver
from spa.runtime.load import target_of
from spa.runtime.run import open_engine

Array = np.ndarray[Any, Any]
PARTS = ("numerics", "sanitizer", "timings", "networks")
TOLERANCE = 2e-3  # of the result's spread: operands are exact in fp16, sums are fp32 in another order
SIZES = (1024, 2048, 4096, 8192)
STEPS = 50  # of a network
RUNS, REPEATS = 9, 20  # medians of so many graphs of so many launches
WANTED = {
    "2:4 / dense": 1.3,
    "2:4 / cuSPARSELt": 0.9,
    "dense / cuBLAS": 0.7,
}  # what the project asks for at 4096 and 8192


# Layers ----------------------------------------------------------------------------------------------------------


def product(n: int, m: int, k: int, dtype: str, pattern: str, seed: int = 0) -> Layer:
    """MatMul of [n, k] with constant weights [k, m] in a pattern."""
    random = np.random.default_rng(seed)
    w = thinned(exact(random, (m, k)), pattern, random)
    tensors = Tensor("x", dtype, (n, k)), Tensor("w", dtype, (k, m))
    return Layer(f"{n}x{m}x{k} {pattern}", "MatMul", {}, tensors, Tensor("y", dtype, (n, m)), {1: w.T.astype(dtype)})


def convolution(x: Sequence[int], w: Sequence[int], stride: int, pad: int, group: int, pattern: str) -> Layer:
    """Conv of pictures in NCHW, fp32."""
    random = np.random.default_rng(1)
    flat = exact(random, (w[0], w[2] * w[3] * w[1]))
    weight = thinned(flat, pattern, random).reshape(w[0], w[2], w[3], w[1]).transpose(0, 3, 1, 2)
    size = [(n + 2 * pad - k) // stride + 1 for n, k in zip(x[2:], w[2:], strict=True)]
    tensors = Tensor("x", "float32", tuple(x)), Tensor("w", "float32", tuple(w))
    attributes = {"strides": [stride] * 2, "pads": [pad] * 4, "group": group}
    output = Tensor("y", "float32", (x[0], w[0], *size))
    return Layer(
        f"{list(x)} {list(w)} {pattern}", "Conv", attributes, tensors, output, {1: np.ascontiguousarray(weight)}
    )


def pictures(x: Sequence[int], w: Sequence[int], stride: int, pad: int, pattern: str, dtype: str) -> Layer:
    """The same of NHWC pictures, as `channels_last` makes it of a Conv (a depthwise one where `w` has one channel)."""
    group = x[1] if w[1] == 1 else 1
    layer = convolution(x, w, stride, pad, group, pattern)
    (n, c, height, width), (_, m, *size) = x, layer.output.shape
    geometry = {"out": size, "strides": [stride] * 2, "dilations": [1, 1], "pads": [pad] * 2, "group": group}
    tensors = Tensor("x", dtype, (n, height, width, c)), Tensor("w", "float32", tuple(w))
    output = Tensor("y", "float32", (n, *size, m))
    return Layer(f"NHWC {layer.name}", CHANNELS_LAST, geometry, tensors, output, layer.consts)


def exact(random: np.random.Generator, shape: Sequence[int]) -> Array:
    """Numbers that fp16 holds exactly."""
    return (random.integers(-16, 17, tuple(shape)) / 16).astype(np.float32)


def thinned(w: Array, pattern: str, random: np.random.Generator) -> Array:
    """[m, k] in a pattern: dense, N:M, blockRxC, or csr (a tenth kept)."""
    if pattern == "dense":
        return w
    if ":" in pattern:
        kept, size = map(int, pattern.split(":"))
        order = np.argsort(random.random((w.shape[0], w.shape[1] // size, size)), -1)
        return np.asarray((w.reshape(order.shape) * (order < kept)).reshape(w.shape))
    rows, columns = map(int, pattern.removeprefix("block").split("x")) if pattern != "csr" else (1, 1)
    keep = random.random((-(-w.shape[0] // rows), -(-w.shape[1] // columns))) < (0.1 if pattern == "csr" else 0.25)
    return np.asarray(w * np.kron(keep, np.ones((rows, columns), np.float32))[: w.shape[0], : w.shape[1]])


def expected(layer: Layer, x: Array) -> Array:
    """In float64."""
    if layer.op == "MatMul":
        return np.asarray(x.astype(np.float64) @ layer.consts[1].astype(np.float64))
    from numpy.lib.stride_tricks import sliding_window_view

    if layer.op == CHANNELS_LAST:
        output = replace(layer.output, shape=tuple(layer.output.shape[i] for i in (0, 3, 1, 2)))
        return expected(replace(layer, op="Conv", output=output), x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    pad, stride, group = layer.attributes["pads"][0], layer.attributes["strides"][0], layer.attributes["group"]
    w = layer.consts[1].astype(np.float64)
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = sliding_window_view(padded, w.shape[2:], (2, 3))[:, :, ::stride, ::stride]
    parts = zip(np.split(windows, group, 1), np.split(w, group, 0), strict=True)
    return np.concatenate([np.einsum("bchwrs,ocrs->bohw", a, b, optimize=True) for a, b in parts], 1)


# One kernel on the card ------------------------------------------------------------------------------------------


class OnCard:
    """A kernel for a layer, compiled, with its operands in device memory."""

    def __init__(self, driver: Driver, layer: Layer, kernel: Kernel, arch: str, x: Array) -> None:
        self.driver, self.layer = driver, layer
        device = emit_cuda({"k": kernel.build()}, {"k"}, arch, {"k": "k"})
        with tempfile.TemporaryDirectory() as folder:
            images = toolchain.compile_images(device.source, [arch], Path(folder))
        if images is None:
            raise MissingTool("no CUDA compiler", hint=toolchain.INSTALL)
        self.module = driver.load(images[0].cubin)
        (self.launch,) = device.launches["k"]
        self.function = driver.function(self.module, self.launch.symbol, self.launch.shared)
        self.stream = driver.stream()
        self.y = np.zeros(layer.output.shape, layer.output.dtype)
        self.pointers = [driver.allocate(a.nbytes) for a in (x, *kernel.weights, self.y)]
        for pointer, array in zip(self.pointers, (x, *kernel.weights, self.y), strict=True):
            driver.upload(pointer, np.ascontiguousarray(array), self.stream)
        driver.synchronize(self.stream)

    def enqueue(self) -> None:
        pointers = [self.pointers[p.index] for p in self.launch.arguments]
        self.driver.launch(
            self.function, self.launch.grid, self.launch.block, self.launch.shared, self.stream, pointers
        )

    def result(self) -> Array:
        self.enqueue()
        self.driver.download(self.y, self.pointers[-1], self.stream)
        self.driver.synchronize(self.stream)
        return self.y

    def microseconds(self) -> float:
        """Of one launch: the median over graphs of many."""
        d = self.driver
        d.begin_capture(self.stream)
        for _ in range(REPEATS):
            self.enqueue()
        graph = d.end_capture(self.stream)
        begin, end = d.event(), d.event()
        times = []
        for _ in range(RUNS + 2):
            d.record(begin, self.stream)
            d.replay(graph, self.stream)
            d.record(end, self.stream)
            d.synchronize(self.stream)
            times.append(d.seconds(begin, end) * 1e6 / REPEATS)
        return statistics.median(times[2:])

    def close(self) -> None:
        for pointer in self.pointers:
            self.driver.free(pointer)
        self.driver.unload(self.module)


def kernels_of(layer: Layer, arch: str, precision: str) -> list[Candidate]:
    matrix = matrix_of(layer)
    assert matrix is not None
    return list(candidates(layer, matrix, arch_of(arch), OPERANDS[precision]))


# Parts -----------------------------------------------------------------------------------------------------------


def cases() -> Iterator[Layer]:
    """Sizes that no tile divides; every format and family has a turn."""
    for pattern in ("dense", "2:4", "block16x16", "block32x32"):
        yield product(130, 200, 264, "float32", pattern)
        yield product(257, 136, 1000, "float16", pattern)
    for pattern in ("dense", "csr", "block4x1", "2:4", "3:8"):
        for n in (1, 5):
            yield product(n, 203, 1000, "float32", pattern)
    for pattern in ("dense", "2:4"):
        yield convolution((2, 20, 33, 33), (70, 20, 3, 3), 2, 1, 1, pattern)
        yield convolution((3, 72, 14, 14), (100, 72, 1, 1), 1, 0, 1, pattern)
        yield convolution((1, 64, 15, 15), (48, 32, 3, 3), 1, 1, 2, pattern)
    yield convolution((2, 48, 19, 19), (48, 1, 3, 3), 2, 1, 48, "dense")
    for dtype in ("float32", "float16"):
        for pattern in ("dense", "2:4", "block16x16"):
            yield pictures((2, 24, 33, 33), (70, 24, 3, 3), 2, 1, pattern, dtype)
        yield pictures((2, 48, 19, 19), (48, 1, 3, 3), 2, 1, "dense", dtype)


def numerics(driver: Driver, arch: str, layers: Iterator[Layer] | None = None) -> list[dict[str, Any]]:
    """Every candidate for every case, in each precision."""
    rows = []
    for layer in layers or cases():
        tensor = layer.inputs[0]
        assert tensor is not None
        x = exact(np.random.default_rng(2), tensor.shape).astype(tensor.dtype)
        right = expected(layer, x)
        for precision in OPERANDS if tensor.dtype == "float32" else ("fp16",):
            for candidate in kernels_of(layer, arch, precision):
                on_card = OnCard(driver, layer, candidate.make(), arch, x)
                got = on_card.result().astype(np.float64).reshape(right.shape)
                on_card.close()
                error = float(np.abs(got - right).max() / max(float(np.ptp(right)), 1e-9))
                row = {
                    "layer": layer.name,
                    "dtype": tensor.dtype,
                    "precision": precision,
                    "family": candidate.family,
                    "format": candidate.format,
                }
                rows.append({**row, "tile": candidate.tile, "error": error, "ok": bool(error < TOLERANCE)})
    return rows


def sanitizer() -> list[dict[str, Any]]:
    """The numerics in a process of their own, under each tool."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return [{"tool": "compute-sanitizer", "ok": None, "said": "not installed"}]
    rows = []
    for tool in ("memcheck", "racecheck"):
        command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, __file__, "numerics", "--out", "-"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = next(
            (line for line in reversed(done.stdout.splitlines()) if "ERROR SUMMARY" in line or "HAZARD" in line), ""
        )
        rows.append({"tool": tool, "ok": done.returncode == 0, "said": said.strip("= ")})
    return rows


def timings(driver: Driver, arch: str) -> list[dict[str, Any]]:
    """TFLOP/s of dense work: ours by tile, then the libraries'."""
    rows = []
    for size in SIZES:
        x = exact(np.random.default_rng(3), (size, size)).astype(np.float16)
        for pattern in ("dense", "2:4"):
            layer = product(size, size, size, "float16", pattern)
            for candidate in kernels_of(layer, arch, "fp16"):
                if candidate.format == pattern:
                    on_card = OnCard(driver, layer, candidate.make(), arch, x)
                    us = on_card.microseconds()
                    on_card.close()
                    rows.append(
                        timing(size, f"spa {pattern}", f"{candidate.family} {candidate.tile}", us, candidate.us)
                    )
        rows += [timing(size, name, "", us, None) for name, us in libraries(size)]
    return rows


def timing(size: int, name: str, tile: str, us: float, predicted: float | None) -> dict[str, Any]:
    tflops = 2 * size**3 / us / 1e6
    return {"size": size, "what": name, "tile": tile, "us": us, "tflops": tflops, "predicted_us": predicted}


def libraries(size: int) -> Iterator[tuple[str, float]]:
    """(name, microseconds) of torch's products, where there is one."""
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    if not torch.cuda.is_available():
        return
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.float16) for _ in range(2))
    yield "cuBLAS", torch_microseconds(torch, partial(torch.mm, a, b.T))
    try:
        from torch.sparse import to_sparse_semi_structured

        mask = torch.tensor([1, 1, 0, 0], device="cuda", dtype=torch.bool).tile(size, size // 4)
        sparse = to_sparse_semi_structured(a.masked_fill(~mask, 0))
        yield "cuSPARSELt", torch_microseconds(torch, partial(torch.mm, sparse, b.T))
    except (ImportError, RuntimeError, NotImplementedError) as error:
        print(f"torch's semi-structured product does not run: {error}", file=sys.stderr)


def torch_microseconds(torch: Any, work: Callable[[], Any]) -> float:
    """As ours are timed: graphs of many."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            work()
    times = []
    for _ in range(RUNS + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / REPEATS)
    return statistics.median(times[2:])


def ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The comparisons that count, from the best tile of each."""
    found = []
    for size in SIZES:
        best: dict[str, float] = {}
        for row in rows:
            if row["size"] == size:
                best[row["what"]] = min(best.get(row["what"], float("inf")), row["us"])
        pairs = {"2:4 / dense": ("spa dense", "spa 2:4"), "2:4 / cuSPARSELt": ("cuSPARSELt", "spa 2:4")}
        for name, (theirs, ours) in (pairs | {"dense / cuBLAS": ("cuBLAS", "spa dense")}).items():
            if theirs in best and ours in best:
                ratio = best[theirs] / best[ours]
                ok = ratio >= WANTED[name] if size >= 4096 else None
                found.append({"size": size, "ratio": name, "value": ratio, "wanted": WANTED[name], "ok": ok})
    return found


def models() -> dict[str, Callable[[], Any]]:
    from networks import encoder, mobilenet_v2, resnet50

    return {"mobilenet_v2": mobilenet_v2, "resnet50": resnet50, "encoder": encoder}


ERRORS = {"fp16": 2e-2, "bf16": 1e-1, "fp32": 1e-4}  # of the output's spread


def networks(arch: str) -> list[dict[str, Any]]:
    """Whole networks: whether they are right, and a step of the replayed graph beside onnxruntime's."""
    rows = []
    for name, build in models().items():
        model = build()
        random = np.random.default_rng(4)
        shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
        feeds = {k: random.standard_normal(shape).astype(np.float32) for k, shape in shapes.items()}
        right, theirs = onnxruntime(model, feeds)
        for precision, most in ERRORS.items():
            bundle = compile(model, "cuda", name=name, cuda_archs=arch, precision=precision)
            engine = open_engine(target_of(bundle.path, "cuda"))
            got = engine.run(feeds)
            ms = statistics.median(engine.step() for _ in range(STEPS)) * 1e3
            engine.close()
            error = max(float(np.abs(got[k] - v).max() / max(float(np.ptp(v)), 1e-9)) for k, v in right.items())
            row = {"network": name, "precision": precision, "ms": ms, **theirs, "error": error}
            rows.append({**row, "ok": bool(error < most)})
    return rows


PROVIDERS = {"onnxruntime_ms": "CUDAExecutionProvider", "tensorrt_ms": "TensorrtExecutionProvider"}


def onnxruntime(model: Any, feeds: dict[str, Array]) -> tuple[dict[str, Array], dict[str, float | None]]:
    """The right outputs, from the processor; and the milliseconds of its CUDA and TensorRT providers, where there are any."""
    import time

    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    right = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))
    found: dict[str, float | None] = dict.fromkeys(PROVIDERS)
    for name, provider in PROVIDERS.items():
        if provider not in ort.get_available_providers():
            continue
        session = ort.InferenceSession(data, providers=[provider])
        if session.get_providers()[0] != provider:  # it falls back where a library is missing
            continue
        times = []
        for _ in range(30):
            begin = time.perf_counter()
            session.run(None, feeds)
            times.append((time.perf_counter() - begin) * 1e3)
        found[name] = statistics.median(times[5:])
    return right, found


# Report ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Card:
    """What the results are from."""

    name: str
    arch: str
    driver: str
    compiler: str

    @classmethod
    def of(cls, driver: Driver) -> Card:
        major, minor = driver.compute
        only = "a" if (major, minor) == (9, 0) else ""  # warpgroup products
        return cls(driver.name, f"sm_{major}{minor}{only}", f"CUDA {driver.version}", toolchain.identity())


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return

    def text(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)

    cells = [list(rows[0]), *(list(map(text, row.values())) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{title}")
    for line in cells:
        print("  " + "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="one of " + ", ".join(PARTS))
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "cuda.json"), help="- for none")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    parts = asked.parts or PARTS
    try:
        if toolchain.find_nvcc() is None:
            raise MissingTool("no nvcc", hint=toolchain.INSTALL)
        driver = Driver()
        card = Card.of(driver)
        print(f"{card.name} ({card.arch}), {card.driver}, {card.compiler}")
        found: dict[str, Any] = {"date": datetime.now(UTC).date().isoformat(), "card": vars(card)}
        if "numerics" in parts:
            found["numerics"] = numerics(driver, card.arch)
        if "sanitizer" in parts:
            found["sanitizer"] = sanitizer()
        if "timings" in parts:
            found["timings"] = timings(driver, card.arch)
            found["ratios"] = ratios(found["timings"])
        if "networks" in parts:
            found["networks"] = networks(card.arch)
    except SpaError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for name in ("numerics", "sanitizer", "timings", "ratios", "networks"):
        show(name, found.get(name, []))
    if asked.out != "-":
        Path(asked.out).parent.mkdir(parents=True, exist_ok=True)
        Path(asked.out).write_text(json.dumps(found, indent=1) + "\n")
    checked = [row for name in ("numerics", "sanitizer", "networks") for row in found.get(name, [])]
    wrong = [row for row in checked if row["ok"] is False]
    print(f"\n{len(checked) - len(wrong)} of {len(checked)} right")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
