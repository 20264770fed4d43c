"""How near the inner loops of the kernels for ARM come to what a core can do, in llvm-mca's models of four cores; and how
many instructions whole networks take.

    python benchmarks/arm.py [--instructions] [--write docs/arm.md]

No ARM machine is needed: each kernel is compiled to assembly, its innermost loop with the most multiply-adds is found,
and llvm-mca says how many cycles it takes in a steady state, everything in the first cache. The peak is the model's own:
the cycles of a loop of as many multiply-adds that depend on nothing but themselves. Needs llvm-mca (apt-get install llvm).
`--instructions` runs the networks of `networks.py` under qemu and counts (see `arm_instructions.py`): minutes.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import arm_instructions as instructions
import numpy as np
import onnx
from networks import NETWORKS, SIZES
from onnx import TensorProto, helper, numpy_helper

from spa.codegen import dispatch, kernels, tvm_api
from spa.codegen.prepare import prepare
from spa.codegen.program import Program
from spa.codegen.target import resolve

CORES = ("cortex-a55", "cortex-a76", "neoverse-n1", "apple-m1")
ITERATIONS = 400
AIMS = {"dense": 0.85, "block": 0.85, "csr": 0.60}  # of cortex-a76's peak, by the first word of the format


@dataclass(frozen=True)
class Case:
    """A convolution: `m` x `k` channels, pictures of `size` squared, `density` in blocks of `block` output channels."""

    name: str
    m: int
    k: int
    size: int
    kernel: int = 1
    density: float = 1.0
    block: int = 1

    def network(self) -> onnx.ModelProto:
        random = np.random.default_rng(0)
        shape = (self.m, self.k, self.kernel, self.kernel)
        weight = random.standard_normal(shape).astype(np.float32)
        if self.density < 1:
            kept = random.random((self.m // self.block, *shape[1:])) < self.density
            weight *= np.repeat(kept, self.block, axis=0)
        node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[self.kernel // 2] * 4)
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, self.k, self.size, self.size])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph([node], "layer", [x], [y], [numpy_helper.from_array(weight, "w")])
        return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


CASES = (
    Case("1x1 dense, 28x28", 256, 256, 28),
    Case("1x1 dense, 7x7", 512, 512, 7),
    Case("3x3 dense, 28x28", 128, 128, 28, 3),
    Case("1x1, 15 % in blocks 4x1, 28x28", 256, 256, 28, density=0.15, block=4),
    Case("1x1, 15 % in blocks 4x1, 7x7", 512, 512, 7, density=0.15, block=4),
    Case("1x1, 15 % unstructured, 28x28", 256, 256, 28, density=0.15),
    Case("1x1, 15 % unstructured, 7x7", 512, 512, 7, density=0.15),
)


def assembly(case: Case, target: str = "arm") -> tuple[str, str, str]:
    """Assembly, format and tile of the kernel that is chosen for a layer."""
    resolved = resolve(target)
    prepared = prepare(case.network(), {}, tvm_api.imported_ops())
    chosen = dispatch.dispatch(prepared, resolved, kernels.FAMILIES)
    ((_, kernel),) = next(iter(chosen.kernels.values()))
    lowered = tvm_api.Lowered(Program((), (), (), (), (), ()), {"kernel": kernel.build()})
    return tvm_api.assembly(lowered, resolved, {"kernel": "kernel"}), kernel.format, kernel.tile


def innermost_loop(text: str) -> list[str]:
    """The instructions of the innermost loop (a label, and behind it a branch back to it with no other label between)
    that has the most fmla."""
    best: list[str] = []
    for body in loops(text):
        if count(body) > count(best):
            best = body
    return best


def loops(text: str) -> list[list[str]]:
    """The instructions of every innermost loop."""
    found: list[list[str]] = []
    body: list[str] = []
    label = ""
    for raw in text.splitlines():
        line = raw.split("//")[0].strip()
        if re.fullmatch(r"\.LBB\w+:", line):
            label, body = line[:-1], []
        elif not line or line.startswith(".") or line.endswith(":"):
            continue
        else:
            body.append(line)
            if label and re.match(r"(b\.\w+|cbn?z|tbn?z|b)\b", line) and line.split()[-1] == label:
                found.append(list(body))
                label = ""
    return found


def count(body: list[str]) -> int:
    """Vector multiply-adds."""
    return sum(line.startswith("fmla") for line in body)


def cycles(body: list[str], core: str) -> float:
    """Of one turn of a loop, in a steady state."""
    command = ["llvm-mca", "-mtriple=aarch64-linux-gnu", f"-mcpu={core}", f"-iterations={ITERATIONS}", "-"]
    # what is loaded and stored overlaps in no loop of ours: nothing waits for a store
    command += ["-noalias=true"]
    source = "\n".join(re.sub(r"\.LBB\w+", "0b", line) for line in body)
    done = subprocess.run(command, input=f"0:\n{source}\n", capture_output=True, text=True, check=True)
    total = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    assert total is not None, done.stdout[:300]
    return int(total[1]) / ITERATIONS


def peak_cycles(core: str) -> float:
    """Of one multiply-add, when nothing else is to be done."""
    chains = [f"fmla v{i}.4s, v30.4s, v31.s[0]" for i in range(24)]
    return cycles(chains, core) / len(chains)


def shares(text: str) -> dict[str, float]:
    """Of each core's peak, what the inner loop of a kernel reaches."""
    body = innermost_loop(text)
    return {core: count(body) * peak_cycles(core) / cycles(body, core) for core in CORES}


def table() -> str:
    lines = ["| layer | format, tile | fmla | " + " | ".join(CORES) + " |", "|---|---|---:|" + "---:|" * len(CORES)]
    missed = []
    for case in CASES:
        text, form, tile = assembly(case)
        found = shares(text)
        aim = next(share for start, share in AIMS.items() if form.startswith(start))
        if found["cortex-a76"] < aim:
            missed.append(f"{case.name}: {found['cortex-a76']:.0%} of cortex-a76's peak, {aim:.0%} wanted")
        row = [case.name, f"{form} {tile}", str(count(innermost_loop(text))), *(f"{found[c]:.0%}" for c in CORES)]
        lines.append("| " + " | ".join(row) + " |")
    aims = "Aims: 85 % of cortex-a76's peak for dense weights and blocks, 60 % for unstructured ones: "
    return "\n".join([*lines, "", aims + ("all reached." if not missed else "missed by " + "; ".join(missed) + ".")])


WEIGHTS: tuple[tuple[str, float, tuple[int, int]], ...] = (
    ("dense", 0.0, (1, 1)),
    ("85 % unstructured", 0.85, (1, 1)),
    ("80 % block4x1", 0.8, (4, 1)),
)
COUNTED = ("mobilenet_v1", "mobilenet_v2", "resnet50", "encoder")


def instructions_table() -> str:
    """Whole networks, then what the kinds of kernels do in them."""
    head = (
        "| network | weights | multiply-adds | instructions | dense / this | per multiply-add | fmla | loads, stores |"
    )
    lines = [head, "|---|---|---:|---:|---:|---:|---:|---:|"]
    kinds = [
        "| network | weights | kernels | layers | instructions | per multiply-add |",
        "|---|---|---|---:|---:|---:|",
    ]
    for name in COUNTED:
        dense = 0
        for weights, sparsity, block in WEIGHTS:
            rows = instructions.kinds_of(NETWORKS[name](SIZES.get(name, 224), sparsity, block))
            total = instructions.together(rows)
            n = total.count.instructions
            dense = dense or n
            shares = [f"{part / n:.0%}" for part in (total.count.fused, total.count.memory)]
            numbers = [_millions(total.macs), _millions(n), f"{dense / n:.2f}", f"{n / total.macs:.2f}"]
            lines.append("| " + " | ".join([name, weights, *numbers, *shares]) + " |")
            for row in rows:
                if row.count.instructions < LITTLE * n:
                    continue
                each = f"{row.count.instructions / row.macs:.2f}" if row.macs else ""
                cells = [name, weights, row.kind, str(row.layers), _millions(row.count.instructions), each]
                kinds.append("| " + " | ".join(cells) + " |")
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(
        [*lines, "", f"By kinds of kernels, those with {LITTLE:.0%} of the instructions or more:", "", *kinds]
    )


LITTLE = 0.02


def _millions(n: int) -> str:
    return f"{n / 1e6:.0f} M"


def written(page: str, command: str, table: str) -> str:
    """The page with the table that a command generates in place of the one it had."""
    begin, end = f"<!-- generated: {command} -->", "<!-- end -->"
    head, rest = page.split(begin)
    return f"{head}{begin}\n\n{table}\n\n{end}{rest.split(end, 1)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instructions", action="store_true", help="count those of whole networks instead")
    parser.add_argument("--write", type=Path, help="replace the table in this page")
    options = parser.parse_args()
    missing = instructions.missing() if options.instructions else ""
    if not options.instructions and shutil.which("llvm-mca") is None:
        missing = "llvm-mca is missing: apt-get install llvm"
    if missing:
        sys.exit(missing)
    command = "benchmarks/arm.py" + (" --instructions" if options.instructions else "")
    found = instructions_table() if options.instructions else table()
    print(found)
    if options.write:
        options.write.write_text(written(options.write.read_text(), command, found))


if __name__ == "__main__":
    main()
