"""Measuring the numbers by which tiles are compared: tiles of many heights and widths, timed as they are in products.

A probe is the inner loop of a dense product on `k` packed rows of X: `rows` weights and `columns` vectors per step, X in the
first cache or, larger, in the second. `fit` finds the numbers of an `Isa` with which `step_cycles` tells their times best.
"""

from __future__ import annotations

import ctypes
import json
import math
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spa.codegen import board, calibration
from spa.codegen.kernels.isa import Isa, shipped_isa
from spa.codegen.kernels.tile import step_cycles, tiles
from spa.codegen.kernels.vector import argument, function, load, loop, number, put, registers, splat, store
from spa.codegen.program import Program
from spa.codegen.target import Target
from spa.codegen.tvm_api import Lowered, emit
from spa.errors import SpaError
from spa.runtime.toolchain import need, run_zig

STEPS = 60_000  # of a probe per run: a tenth of a millisecond or more
ROUNDS = 25
SHAPES = (
    (1, 1),
    (1, 2),
    (1, 4),
    (2, 2),
    (2, 4),
    (4, 2),
    (3, 4),
    (4, 3),
    (6, 2),
    (4, 6),
    (8, 2),
    (8, 3),
    (1, 8),
    (2, 8),
)


@dataclass(frozen=True)
class Probe:
    """A tile, and over how many steps of k it runs before it begins again: `k` steps of X fill the cache that is meant."""

    rows: int
    columns: int
    k: int

    @property
    def name(self) -> str:
        return f"probe_{self.rows}x{self.columns}x{self.k}"


@dataclass(frozen=True)
class Fit:
    """The numbers found. `error`, `before`: what is typically missing between told and measured times, as a factor - 1,
    with them and with those that are shipped."""

    isa: Isa
    error: float
    before: float

    @property
    def cycles(self) -> dict[str, float]:
        return {name: round(float(getattr(self.isa, name)), 4) for name in calibration.FITTED}


def probes(isa: Isa) -> list[Probe]:
    """Tiles that fit the registers, with X in half of the first cache and in half of the second."""
    fitting = set(tiles(isa))
    found = []
    for rows, columns in SHAPES:
        if (rows, columns) in fitting:
            each = columns * isa.lanes * 4 + rows * 4
            found += [Probe(rows, columns, max(size // 2 // each, 8)) for size in (isa.l1, isa.l2)]
    return found


def build(probe: Probe, isa: Isa) -> Any:
    """The PrimFunc: x, w, y; as many rounds over k as make `STEPS`."""
    rows, columns, lanes = probe.rows, probe.columns, isa.lanes
    with function() as f:
        x, w = argument("x", probe.k * columns * lanes), argument("w", probe.k * rows)
        y = argument("y", rows * columns * lanes)
        with loop(max(STEPS // probe.k, 1)):
            tile = registers(rows, columns, lanes)
            for row in tile:
                for register in row:
                    put(register, number(0, lanes))
            with loop(probe.k) as k:
                for r, row in enumerate(tile):
                    weight = splat(w[k * rows + r], lanes)
                    for v, register in enumerate(row):
                        put(register, weight * load(x, (k * columns + v) * lanes, lanes) + register[0])
            for r, row in enumerate(tile):
                for v, register in enumerate(row):
                    at = (r * columns + v) * lanes
                    store(y, register[0] + load(y, at, lanes), at, lanes)
    return f.primfunc


@dataclass(frozen=True)
class Times:
    """Nanoseconds per step of every probe, and what the machine calls itself if it is another one."""

    steps: dict[Probe, float]
    elsewhere: str | None = None


def measure(target: Target, on: str | None = None) -> Times:
    """The best of some rounds: on this machine (wasm: in Node), or where the command `on` leads (`board`)."""
    isa = shipped_isa(target)
    asked = probes(isa)
    names = [p.name for p in asked]
    lowered = Lowered(Program((), (), (), (), (), ()), {p.name: build(p, isa) for p in asked})
    with tempfile.TemporaryDirectory(prefix="spa-") as folder:
        work = Path(folder)
        (work / "probes.o").write_bytes(emit(lowered, target, {n: n for n in names}, work).data)
        if on is not None:
            best, where = board.run(board.link(work, target, names, _sizes(asked, isa), ROUNDS), on, names)
        else:
            best, where = (_node if target.is_wasm else _native)(work, target, asked, isa), None
    return Times({p: ns / (max(STEPS // p.k, 1) * p.k) for p, ns in zip(asked, best, strict=True)}, where)


def _linked(work: Path, arguments: list[str]) -> None:
    done = run_zig(["cc", *arguments], work)
    if done.returncode:
        raise SpaError(
            f"zig cc failed: {done.stderr.strip()[-300:]}", "probes", "this is a bug of spa: please report it"
        )


def _sizes(asked: Sequence[Probe], isa: Isa) -> tuple[int, int, int]:
    """Floats that x, w and y need at most."""
    return (
        max(p.k * p.columns * isa.lanes for p in asked),
        max(p.k * p.rows for p in asked),
        max(p.rows * p.columns * isa.lanes for p in asked),
    )


def _native(work: Path, target: Target, asked: Sequence[Probe], isa: Isa) -> list[float]:
    _linked(work, ["-target", target.zig, "-shared", "probes.o", "-o", "probes.so", "-lm"])
    library = ctypes.CDLL(str(work / "probes.so"))
    blocks = [np.zeros(size + 16, np.float32) for size in _sizes(asked, isa)]
    places = [ctypes.c_void_p(b.ctypes.data + -b.ctypes.data % 64) for b in blocks]
    best = [math.inf] * len(asked)
    for _ in range(ROUNDS):
        for i, probe in enumerate(asked):
            begin = time.perf_counter_ns()
            getattr(library, probe.name)(*places, None)
            best[i] = min(best[i], time.perf_counter_ns() - begin)
    return best


NODE = """
const { readFileSync } = require("node:fs");
const { names, sizes, rounds } = JSON.parse(process.argv[1]);
const { exports } = new WebAssembly.Instance(new WebAssembly.Module(readFileSync("probes.wasm")), {});
const places = [];
let top = Math.ceil(exports.__heap_base.value / 64) * 64;
for (const size of sizes) { places.push(top); top += Math.ceil(size / 16) * 64; }
exports.memory.grow(Math.ceil(top / 65536));
const best = names.map(() => Infinity);
for (let round = 0; round < rounds; round++)
  names.forEach((name, i) => {
    const begin = performance.now();
    exports[name](...places, 0);
    best[i] = Math.min(best[i], (performance.now() - begin) * 1e6);
  });
console.log(JSON.stringify(best));
"""


def _node(work: Path, target: Target, asked: Sequence[Probe], isa: Isa) -> list[float]:
    exports = [f"-Wl,--export={p.name}" for p in asked]
    flags = ["-target", "wasm32-freestanding", "-O2", "-msimd128", "-Wl,--no-entry", "-Wl,--export=__heap_base"]
    _linked(work, [*flags, *exports, "probes.o", "-o", "probes.wasm"])
    options = json.dumps({"names": [p.name for p in asked], "sizes": _sizes(asked, isa), "rounds": 2 * ROUNDS})
    done = subprocess.run([need("node"), "-e", NODE, options], cwd=work, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SpaError(f"node failed: {done.stderr.strip()[-300:]}", "probes")
    best: list[float] = json.loads(done.stdout)
    return best


def fit(isa: Isa, measured: dict[Probe, float]) -> Fit:
    """The numbers with which the ratios of times come out best: sum of squared logarithms, by Nelder and Mead's simplex from
    the shipped ones. Only ratios matter to a choice, so the unit is free: a multiply-add costs what it is shipped with."""
    from scipy.optimize import fmin

    times = np.log(np.array(list(measured.values())))
    free = [name for name in calibration.FITTED if name != "fma"]

    def told(row: Isa) -> Any:
        return np.log([step_cycles(row, p.rows, p.columns, _depth(row, p)) for p in measured])

    def spread(row: Isa) -> float:
        missing = told(row) - times
        return float(np.mean((missing - np.median(missing)) ** 2))

    start: np.ndarray[tuple[int], np.dtype[np.float64]] = np.log(np.array([float(getattr(isa, name)) for name in free]))

    def of(numbers: Any) -> Isa:
        return replace(isa, **dict(zip(free, np.exp(np.clip(numbers, start - 3, start + 3)).tolist(), strict=True)))

    def loss(numbers: Any) -> float:
        return spread(of(numbers))

    found = fmin(loss, start, maxiter=3000, disp=False)
    best = min((isa, of(found)), key=spread)
    return Fit(best, math.expm1(math.sqrt(spread(best))), math.expm1(math.sqrt(spread(isa))))


def _depth(isa: Isa, probe: Probe) -> int:
    """The channels of a layer whose pixels lie where the probe's do."""
    return 0 if probe.k * (probe.columns * isa.lanes * 4 + probe.rows * 4) <= isa.l1 else 1 << 20
