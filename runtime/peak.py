"""The most multiply-adds per second that one core does in an engine: measured, with registers only (`native/peak.c`)."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spa.errors import SpaError
from spa.runtime.load import Target
from spa.runtime.toolchain import need, run_zig

SOURCE = Path(__file__).parent / "native" / "peak.c"
STEPS = 1 << 20  # a millisecond or a few
ROUNDS = 15
CHAINS = 12  # a multiply and an add of four cycles each, two of them at a time, or nearly
LANES = {"x86-64-v4": 16, "x86-64-v3": 8}  # of a target's cpu; else 4


def peak_gmacs(target: Target, engine: str | None = None) -> float:
    """10^9 multiply-adds per second: the best of some rounds."""
    wasm = target.triple.startswith("wasm")
    lanes = 4 if wasm else LANES.get(target.cpu, 4)
    flags = ["-O2", "-ffp-contract=fast", "-fno-sanitize=all", f"-DLANES={lanes}", f"-DCHAINS={CHAINS}"]
    with tempfile.TemporaryDirectory(prefix="spa-") as folder:
        work = Path(folder)
        (work / "peak.c").write_text(SOURCE.read_text())
        if wasm:
            machine = ["-target", "wasm32-freestanding", "-msimd128", "-Wl,--no-entry", "-Wl,--export=peak"]
        else:
            cpu = [f"-mcpu={target.cpu.replace('-', '_')}"] if target.cpu else []
            machine = ["-target", "native", *cpu, "-mprefer-vector-width=512", "-shared", "-fPIC"]
        done = run_zig(["cc", *machine, *flags, "peak.c", "-o", "peak.out"], work)
        if done.returncode:
            raise SpaError(
                f"zig cc failed: {done.stderr.strip()[-300:]}", "peak.c", "this is a bug of spa: please report it"
            )
        if not wasm:
            return _best(_native(work / "peak.out"))
        pages = {"node": _node, "chromium": _chromium}
        return pages[engine](work) if engine in pages else _best(_wasmtime(work / "peak.out"))


def _best(run: Callable[[], float]) -> float:
    best = 0.0
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        count = run()
        best = max(best, count / (time.perf_counter() - begin) / 1e9)
    return best


def _native(path: Path) -> Callable[[], float]:
    function = ctypes.CDLL(str(path)).peak
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_int]
    return lambda: float(function(STEPS))


def _wasmtime(path: Path) -> Callable[[], float]:
    import wasmtime

    engine = wasmtime.Engine()
    store = wasmtime.Store(engine)
    exports: Any = wasmtime.Instance(store, wasmtime.Module.from_file(engine, str(path)), []).exports(store)
    return lambda: float(exports["peak"](store, STEPS))


BEST = """async (source, steps, rounds) => {
  const { instance } = await WebAssembly.instantiate(source, {});
  let best = 0;
  for (let i = 0; i < rounds; i++) {
    const begin = performance.now();
    const count = instance.exports.peak(steps);
    best = Math.max(best, count / (performance.now() - begin) / 1e6);
  }
  return best;
}"""


def _node(folder: Path) -> float:
    call = f'({BEST})(require("node:fs").readFileSync("peak.out"), {STEPS}, {4 * ROUNDS}).then((best) => console.log(best))'
    done = subprocess.run([need("node"), "-e", call], cwd=folder, capture_output=True, text=True, check=True)
    return float(done.stdout)


def _chromium(folder: Path) -> float:
    from spa.runtime.browser import Tab

    tab = Tab()
    try:
        tab.site.files["/peak.wasm"] = folder / "peak.out"
        source = 'await (await fetch("/peak.wasm")).arrayBuffer()'
        return float(tab.page.js(f"(async () => ({BEST})({source}, {STEPS}, {4 * ROUNDS}))()"))
    finally:
        tab.close()
