"""How long `spa check` takes over many models: python benchmarks/check.py [--models 50] [--budget gzip_bytes=1GB ...]

Writes networks of convolutions with random weights, 5 to 100 MB, evenly spread (networks of fewer layers in between: 20 to
200 nodes), into a temporary folder, once with `--update` (the baseline) and once as a check, each in a process of its own,
after the files were read once. Prints the machine, the method and seconds, and counts the opens of each model.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

COUNT = """
import sys, collections
seen = collections.Counter()
sys.addaudithook(lambda e, a: seen.update([str(a[0])]) if e == "open" and str(a[0]).endswith(".onnx") else None)
from spa.cli import main
try:
    main(sys.argv[1:])
finally:
    print("opens of each model:", sorted(set(seen.values())), file=sys.stderr)
"""


def network(path: Path, size: float, nodes: int, rng: np.random.Generator) -> None:
    """About `size` bytes in `nodes` nodes, every other one a convolution of 3 x 3."""
    layers = nodes // 2
    width = int((size / 4 / 9 / layers) ** 0.5)
    made, weights, now = [], [], "x"
    for i in range(layers):
        kernel = rng.standard_normal((width, width if i else 3, 3, 3), np.float32)
        weights.append(onnx.numpy_helper.from_array(kernel, f"w{i}"))
        made.append(onnx.helper.make_node("Conv", [now, f"w{i}"], [f"c{i}"], name=f"conv{i}", pads=[1, 1, 1, 1]))
        made.append(onnx.helper.make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"relu{i}"))
        now = f"r{i}"
    x = onnx.helper.make_tensor_value_info("x", 1, ["N", 3, 32, 32])
    y = onnx.helper.make_tensor_value_info(now, 1, None)
    graph = onnx.helper.make_graph(made, "net", [x], [y], weights)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--budget", action="append", default=[], help="such as gzip_bytes=1GB")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    cpu = next((x.split(":")[1].strip() for x in _lines("/proc/cpuinfo") if x.startswith("model name")), "")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"machine: {platform.system()} {platform.machine()} {cpu}, {usable} cores usable")
    with tempfile.TemporaryDirectory(prefix="spa-check-") as name:
        folder = Path(name)
        for i, size in enumerate(np.linspace(5e6, 100e6, given.models)):
            network(folder / f"{i:03}.onnx", float(size), int(rng.integers(20, 200)), rng)
        total = sum(p.stat().st_size for p in folder.glob("*.onnx"))
        print(f"models: {given.models}, {total / 1e6:.0f} MB in all")
        (folder / "spa.toml").write_text('[check]\nmodels = ["*.onnx"]\n')
        options = [f"--budget={b}" for b in ["file_bytes=+1%", "macs=+0%", "nonzero=+0%", *given.budget]]
        for what in (["--update"], []):
            begin = time.perf_counter()
            command = [sys.executable, "-c", COUNT, "check", *options, *what, "--format", "json=report.json"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            seconds = time.perf_counter() - begin
            print(f"spa check {' '.join(what):8} {seconds:6.1f} s, exit {done.returncode}; {done.stderr.strip()}")


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


if __name__ == "__main__":
    main()
