"""How many instructions an ARM artifact runs, counted under qemu: of one run of a network, by kernel.

A plugin of qemu's (`count.c`) counts how often each block of code is run; which kernel the block belongs to, and what
its instructions are, stands in the program itself. Needs a C compiler and a qemu-aarch64 with plugins, which the
statically linked ones of distributions lack: apt-get install gcc qemu-user.
"""

from __future__ import annotations

import functools
import math
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from spa.codegen.bundle import Bundle, compile
from spa.runtime.load import target_of
from spa.runtime.runner import SOURCE
from spa.runtime.toolchain import run_zig

PLUGIN = Path(__file__).parent / "count.c"
NEWER_INTERFACE = 9  # qemu's version since which plugins of the first interface are refused
Codes = np.ndarray[Any, np.dtype[np.uint32]]


@dataclass(frozen=True)
class Count:
    """Instructions that were run; of them loads and stores, and multiply-adds on vectors; `lanes`: multiply-adds of
    float32 that those did together."""

    instructions: int = 0
    memory: int = 0
    fused: int = 0
    lanes: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(*(a + b for a, b in zip(self.fields, other.fields, strict=True)))

    @property
    def fields(self) -> tuple[int, int, int, int]:
        return self.instructions, self.memory, self.fused, self.lanes


@dataclass(frozen=True)
class Row:
    """What the kernels of a family and format did: their `layers`, the multiply-adds with weights that are not zero."""

    kind: str
    layers: int
    macs: int
    count: Count


@dataclass(frozen=True)
class Program:
    """A static ELF program: its code from address `begin` on, and its functions by address."""

    begin: int
    codes: Codes
    functions: tuple[tuple[int, str], ...]


@functools.cache
def emulator() -> str | None:
    """A qemu-aarch64 that takes plugins, or None."""
    for name in ("qemu-aarch64", "qemu-aarch64-static"):
        found = shutil.which(name)
        if found and "-plugin" in subprocess.run([found, "-h"], capture_output=True, text=True, check=False).stdout:
            return found
    return None


def missing() -> str:
    """What cannot be done without; empty where all is there."""
    if emulator() is None:
        return "no qemu-aarch64 with plugins: apt-get install qemu-user"
    return "" if shutil.which("cc") else "no C compiler: apt-get install gcc"


def kinds_of(model: onnx.ModelProto) -> list[Row]:
    """What one run of a network does, by kinds of kernels; last what is none: a program around it, libm. The most
    instructions first."""
    bundle = compile(model, "arm")
    facts = bundle.manifest["targets"]["arm"]
    with tempfile.TemporaryDirectory(prefix="spa-") as folder:
        work = Path(folder)
        program = _linked(bundle, work)
        blocks = _counted(program, bundle, work)
        counts = by_function(read_program(program), blocks)
    rows = facts["kernels"]
    kind_of = {row["kernel"]: " ".join(dict.fromkeys((row["family"], row["format"]))) for row in rows}
    totals: dict[str, Count] = {}
    for function, count in counts.items():
        kind = _kind(function, facts["prefix"], kind_of)
        totals[kind] = totals.get(kind, Count()) + count
    found = []
    for kind, count in totals.items():
        served = [row for row in rows if kind_of[row["kernel"]] == kind]
        found.append(Row(kind, len(served), sum(row.get("macs", 0) for row in served), count))
    return sorted(found, key=lambda row: (row.layers == 0, -row.count.instructions))


def together(rows: list[Row]) -> Row:
    return Row("all", sum(r.layers for r in rows), sum(r.macs for r in rows), sum((r.count for r in rows), Count()))


def _kind(function: str, prefix: str, kind_of: Mapping[str, str]) -> str:
    """The kind of the kernel that a function belongs to; a kernel may be several functions, named after it."""
    start = f"{prefix}__k_"
    if not function.startswith(start):
        return "no kernel"
    name = function.removeprefix(start)
    known = [kernel for kernel in kind_of if re.fullmatch(re.escape(kernel) + r"(_compute_.*|\..*)?", name)]
    return kind_of[max(known, key=len)] if known else "no kernel"


def _linked(bundle: Bundle, work: Path) -> Path:
    """The runner that tests use, with the names of its functions."""
    target = target_of(bundle.path, "arm")
    for path, name in ((f"lib{target.prefix}.a", "model.a"), (f"{target.prefix}.h", "model.h")):
        shutil.copyfile(target.file(path), work / name)
    shutil.copyfile(SOURCE, work / "runner.c")
    names = [f"-DMODEL(name)={target.prefix}_##name"]
    names += [f"-DINPUTS={len(target.inputs)}", f"-DOUTPUTS={len(target.outputs)}"]
    command = ["cc", "-target", "aarch64-linux-musl", "-static", "-O2", "-g0", *names, "runner.c", "model.a"]
    done = run_zig([*command, "-o", "runner", "-lm"], work)
    if done.returncode:
        raise RuntimeError(f"the runner does not link: {done.stderr.strip()[-400:]}")
    return work / "runner"


def _counted(program: Path, bundle: Bundle, work: Path) -> list[tuple[int, int, int]]:
    """(address, instructions, times) of every block that was run."""
    qemu = emulator()
    if qemu is None:
        raise RuntimeError(missing())
    said = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"version (\d+)", said)
    interface = 2 if version and int(version[1]) >= NEWER_INTERFACE else 1
    build = ["cc", "-shared", "-fPIC", "-O2", f"-DVERSION={interface}", str(PLUGIN), "-o", str(work / "count.so")]
    subprocess.run(build, check=True)
    random = np.random.default_rng(0)
    (work / "inputs").write_bytes(
        b"".join(random.standard_normal(t["shape"]).astype(t["dtype"]).tobytes() for t in bundle.manifest["inputs"])
    )
    run = [qemu, "-plugin", str(work / "count.so"), str(program), str(work / "inputs"), str(work / "outputs")]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{program} failed under qemu: {done.stderr.strip()[-300:]}")
    lines = [line.split() for line in done.stderr.splitlines() if line.startswith("block ")]
    return [(int(address, 16), int(size), int(times)) for _, address, size, times in lines]


def by_function(program: Program, blocks: list[tuple[int, int, int]]) -> dict[str, Count]:
    """What was run of each function."""
    starts = np.array([address for address, _ in program.functions])
    counts: dict[str, Count] = {}
    for address, size, times in blocks:
        at = int(np.searchsorted(starts, address, side="right")) - 1
        name = program.functions[at][1] if at >= 0 else ""
        first = (address - program.begin) // 4
        counts[name] = counts.get(name, Count()) + classified(program.codes[first : first + size], times)
    return counts


def classified(codes: Codes, times: int) -> Count:
    """These instructions, so often. Encodings: Arm Architecture Reference Manual, C4.1."""
    memory = (codes >> 25) & 0b0101 == 0b0100  # op0 = x1x0
    by_lane = codes & 0xBF80F400 == 0x0F801000  # fmla v, v, v.s[i]
    by_vector = codes & 0xBFA0FC00 == 0x0E20CC00  # fmla v, v, v
    fused = by_lane | by_vector
    lanes = fused * (2 + 2 * ((codes >> 30) & 1).astype(np.int64))
    return Count(len(codes) * times, int(memory.sum()) * times, int(fused.sum()) * times, int(lanes.sum()) * times)


def read_program(path: Path) -> Program:
    """Code and functions of a 64-bit ELF file of little endian order."""
    data = path.read_bytes()
    table, entry, number = (*struct.unpack_from("<Q", data, 40), *struct.unpack_from("<HH", data, 58))
    # name, type, flags, address, offset, size, link, info, alignment, entry size of each section
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * entry) for i in range(number)]
    executable = [s for s in sections if s[1] == 1 and s[2] & 4]
    begin, end = min(s[3] for s in executable), max(s[3] + s[5] for s in executable)
    codes = np.zeros(math.ceil((end - begin) / 4), np.uint32)
    for _, _, _, address, offset, size, *_ in executable:
        codes[(address - begin) // 4 :][: size // 4] = np.frombuffer(data, "<u4", size // 4, offset)
    functions = []
    for symbols in (s for s in sections if s[1] == 2):
        names = sections[symbols[6]][4]
        for at in range(symbols[4], symbols[4] + symbols[5], 24):
            name, info, _, _, address, _ = struct.unpack_from("<IBBHQQ", data, at)
            if info & 15 == 2:
                functions.append((address, data[names + name : data.index(b"\0", names + name)].decode()))
    return Program(begin, codes, tuple(sorted(functions)))
