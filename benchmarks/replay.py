"""Which kernels' code changed between two checkouts: what a refactoring must not change, and what a change changed.

    python benchmarks/replay.py CHECKOUT [OTHER]        OTHER: this checkout

One layer per kernel family and instruction set is compiled in both; the assembly is compared, without what debuggers
read. `--diff` shows the hottest loop of each that differs. Exit 0: nothing changed, 1: something did.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ISAS = {
    "avx512": ("host", "x86-64-v4"),
    "avx2": ("host", "x86-64-v3"),
    "neon": ("arm", None),
    "simd128": ("wasm", None),
}
MULTIPLY_ADD = re.compile(r"v?fmadd|fmla|f32x4\.(relaxed_madd|mul)|mulps|v?addps|fadd|f32x4\.(add|max)|v?maxps|fmax")


def conv(m: int, k: int, size: int, kernel: int = 1, density: float = 1.0, block: int = 1, **attributes: Any) -> Any:
    """A convolution and a ReLU."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    shape = (m, k // attributes.get("group", 1), kernel, kernel)
    weight = random.standard_normal(shape).astype(np.float32)
    if density < 1:
        weight *= np.repeat(random.random((m // block, *shape[1:])) < density, block, axis=0)
    nodes = [
        helper.make_node(
            "Conv", ["x", "w"], ["c"], pads=[kernel // 2 * attributes.get("dilations", [1])[0]] * 4, **attributes
        ),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, k, size, size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "layer", [x], [y], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def text(body: str, **sizes: tuple[int, ...]) -> Any:
    """A network in ONNX's text form, `body` from inputs to y; `sizes`: shapes of its weights."""
    import numpy as np
    from onnx import numpy_helper, parser

    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {body}')
    random = np.random.default_rng(0)
    for name, shape in sizes.items():
        model.graph.initializer.append(numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name))
    return model


CASES: Mapping[str, Callable[[], Any]] = {
    "pointwise": lambda: conv(64, 64, 28),
    "blocks": lambda: conv(64, 128, 28, density=0.15, block=4),
    "unstructured": lambda: conv(64, 128, 28, density=0.1),
    "window": lambda: conv(32, 32, 28, 3, dilations=[2, 2]),
    "winograd": lambda: conv(64, 64, 56, 3),
    "depthwise": lambda: conv(32, 32, 28, 3, group=32),
    "row": lambda: text("(float[1,256] x) => (float[1,96] y) { y = MatMul(x, w) }", w=(256, 96)),
    "rows": lambda: text("(float[64,96] x) => (float[64,128] y) { y = MatMul(x, w) }", w=(96, 128)),
    "batched": lambda: text("(float[4,64,32] a, float[4,32,64] b) => (float[4,64,64] y) { y = MatMul(a, b) }"),
    "softmax": lambda: text("(float[8,96] x) => (float[8,96] y) { y = Softmax(x) }"),
    "chain": lambda: text("(float[64,64] x, float[64,64] z) => (float[64,64] y) { s = Add(x, z) y = Relu(s) }"),
}


def compiled(case: str, isa: str) -> list[dict[str, str]]:
    """Family, format, tile and assembly of each kernel of a case."""
    from spa.codegen import dispatch, kernels, tvm_api
    from spa.codegen.prepare import prepare
    from spa.codegen.program import Program
    from spa.codegen.target import resolve

    name, level = ISAS[isa]
    target = resolve(name, level)
    chosen = dispatch.dispatch(prepare(CASES[case](), {}, tvm_api.imported_ops()), target, kernels.FAMILIES)
    found = []
    for served in chosen.kernels.values():
        kernel = served[0][1]
        lowered = tvm_api.Lowered(Program((), (), (), (), (), ()), {"kernel": kernel.build()})
        code = tvm_api.assembly(lowered, target, {"kernel": "kernel"}, None if name == "wasm" else "net")
        found.append({"kernel": f"{kernel.family} {kernel.format} {kernel.tile}", "code": plain(code)})
    return found


def plain(code: str) -> str:
    """Assembly without comments, debug information and the numbers of labels that only it uses."""
    lines = []
    for raw in code.splitlines():
        line = re.split(r"\s*(?:#\s|//)", raw + " ", maxsplit=1)[0].rstrip()  # `#1` is a number on ARM
        if line.strip().startswith(".section") and "debug" in line:
            break
        if line and not re.match(r"\s*\.(loc|file|cfi|ident|addrsig|Ltmp|Lfunc)|\.Ltmp|\.Lfunc", line):
            lines.append(re.sub(r"[ \t]+", " ", line.strip()))
    return "\n".join(lines)


def hottest_loop(code: str) -> str:
    """The innermost loop with the most vector arithmetic."""
    best: list[str] = []
    for body in _loops(code.splitlines()):
        if _heat(body) > _heat(best):
            best = body
    return re.sub(r"\.LBB\w+", ".L", "\n".join(best))


def _heat(body: list[str]) -> int:
    return sum(MULTIPLY_ADD.match(line) is not None for line in body)


def _loops(lines: list[str]) -> list[list[str]]:
    found: list[list[str]] = []
    body: list[str] = []
    label, opened = "", False
    for line in lines:
        if line == "loop":  # wasm
            body, opened = [], True
        elif line == "end_loop":
            if opened:
                found.append(body)
            opened = False
        elif re.fullmatch(r"\.LBB\w+:", line):
            if not opened:
                body, label = [], line[:-1]
        else:
            body.append(line)
            if not opened and label and line.split()[-1] == label:
                found.append(list(body))
                label = ""
    return found


def everything() -> dict[str, str]:
    """Code by 'case isa kernel'."""
    found = {}
    for case in CASES:
        for isa in ISAS:
            for i, row in enumerate(compiled(case, isa)):
                found[f"{case} {isa} {i}"] = f"{row['kernel']}\n{row['code']}"
    return found


def in_checkout(root: Path) -> dict[str, str]:
    script = "import json, replay; print(json.dumps(replay.everything()))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(HERE)])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{root}: {done.stderr.strip()[-400:]}")
    loaded: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return loaded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("other", type=Path, nargs="?", default=HERE.parent)
    parser.add_argument("--diff", action="store_true", help="show the hottest loops that differ")
    options = parser.parse_args()
    before, after = in_checkout(options.checkout.resolve()), in_checkout(options.other.resolve())
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    for key in changed:
        old, new = (side.get(key, "\n") for side in (before, after))
        print(
            f"{key}: {old.splitlines()[0]} -> {new.splitlines()[0]}, {len(old.splitlines())} -> {len(new.splitlines())} lines"
        )
        if options.diff:
            loops = [hottest_loop(side).splitlines() for side in (old, new)]
            print("\n".join(difflib.unified_diff(loops[0], loops[1], "before", "after", lineterm="", n=1)))
    print(f"{len(changed)} of {len({**before, **after})} kernels changed")
    sys.exit(1 if changed else 0)


if __name__ == "__main__":
    main()
