"""An independent check of sparsity: reads the ONNX file and the plan with onnx and numpy alone, and counts.

    python tests/check_patterns.py THIN.onnx PLAN.json

`violations(proto, sparsity)` is what tests use. The rules are written out here a second time, from docs/sparsity.md,
in other words, so that a mistake in that code cannot excuse itself.
"""

from __future__ import annotations

import json
import math
import re
import sys
from typing import Any

import numpy as np
import onnx
import onnx.inliner


def constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    found = {t.name: onnx.numpy_helper.to_array(t) for g in all_graphs(proto.graph) for t in g.initializer}
    for node in all_nodes(proto.graph):
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    for function in proto.functions:
        for node in function.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                name = f"{function.domain}::{function.name}/{node.output[0]}"
                found[name] = onnx.numpy_helper.to_array(node.attribute[0].t)
    return found


def all_graphs(graph: Any) -> list[onnx.GraphProto]:
    """A graph and those inside its nodes."""
    inner = [g for n in graph.node for a in n.attribute for g in ([a.g] if a.HasField("g") else a.graphs)]
    return [graph, *(deeper for g in inner for deeper in all_graphs(g))]


def all_nodes(graph: Any) -> list[onnx.NodeProto]:
    found = []
    for node in graph.node:
        found.append(node)
        for a in node.attribute:
            for sub in [a.g] if a.HasField("g") else a.graphs:
                found += all_nodes(sub)
    return found


def matrices(proto: onnx.ModelProto, name: str, array: np.ndarray) -> tuple[list[np.ndarray], int]:
    """[outputs, inputs] per group, and the taps of a kernel (inputs run tap by tap)."""
    short = name.rpartition("/")[2] if "::" in name else name
    inlined = onnx.inliner.inline_local_functions(proto) if proto.functions and "::" not in name else proto
    nodes = [n for g in (inlined.graph, *inlined.functions) for n in all_nodes(g) if short in n.input]
    node = nodes[0]
    attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    slot = list(node.input).index(short)
    if "ConvTranspose" in node.op_type:
        g = attrs.get("group", 1)
        per = array.shape[0] // g
        return [array[i * per : (i + 1) * per].reshape(per, -1).T for i in range(g)], 1
    if "Conv" in node.op_type:
        g = attrs.get("group", 1)
        per, taps = array.shape[0] // g, int(np.prod(array.shape[2:]))
        parts = [array[i * per : (i + 1) * per].reshape(per, array.shape[1], taps) for i in range(g)]
        return [np.concatenate([p[:, :, t] for t in range(taps)], axis=1) for p in parts], taps
    if node.op_type in ("LSTM", "GRU", "RNN"):
        return list(array), 1
    if node.op_type == "Gather" or (node.op_type in ("Gemm", "FusedGemm", "FusedMatMul") and attrs.get("transB", 0)):
        return [array], 1
    stack = array.reshape(-1, *array.shape[-2:])
    left = node.op_type == "MatMul" and slot == 0
    return [m if left else m.T for m in stack], 1


def kept_of(count: int, ratio: float) -> int:
    return max(1, count - math.floor(count * ratio + 1e-9))


def fault(m: np.ndarray, taps: int, pattern: str) -> str:
    """What is wrong with one matrix; empty where it has its pattern."""
    rows, cols = m.shape
    there = m != 0
    if found := re.fullmatch(r"(?:g(?:(\d+)x)?)?(\d+):(\d+)", pattern):
        band = (int(found[1]) if found[1] else 4) if pattern.startswith("g") else 1
        n, k = int(found[2]), int(found[3])
        used = np.logical_or.reduceat(there, range(0, rows, band), axis=0)
        for at in range(0, cols, k):
            pool = used[:, at : at + k]
            counts = pool.sum(1)
            if counts.max() > math.ceil(pool.shape[1] * n / k):
                return f"{counts.max()} of {pool.shape[1]} in band {counts.argmax()}, columns {at}.."
        return ""
    if found := re.fullmatch(r"taps(\d+)(?:x(\d+))?", pattern):
        return fault_of_taps(there, taps, int(found[1]), int(found[2] or 8))
    kind, ratio = pattern.split(":")
    share = float(ratio)
    if kind == "fanin":
        worst = int(there.sum(1).max())
        return f"{worst} inputs" if worst > kept_of(cols, share) else ""
    if kind == "unstructured":
        units, used = rows * cols, int(there.sum())
    elif kind == "kernel":
        channels = cols // taps
        units = rows * channels
        used = sum(int(there[:, c::channels].any(1).sum()) for c in range(channels))
    else:
        high, wide = map(int, kind.removeprefix("block").split("x"))
        blocks = np.logical_or.reduceat(there, range(0, rows, high), axis=0)
        blocks = np.logical_or.reduceat(blocks, range(0, cols, wide), axis=1)
        units, used = blocks.size, int(blocks.sum())
    return f"{used} of {units} units" if used > kept_of(units, share) else ""


def fault_of_taps(there: np.ndarray, taps: int, k: int, most: int) -> str:
    """Every kernel within k taps, all kernels within `most` sets of k taps (small ones joined as they come)."""
    if k >= taps:
        return ""
    channels = there.shape[1] // taps
    rows = {row.tobytes() for c in range(channels) for row in np.unique(there[:, c::channels], axis=0)}
    used = {frozenset(np.flatnonzero(np.frombuffer(row, bool)).tolist()) for row in rows}
    if any(len(s) > k for s in used):
        return f"a kernel of {max(map(len, used))} taps"
    sets = [s for s in used if len(s) == k]
    for small in sorted((s for s in used if len(s) < k), key=len, reverse=True):
        if not any(small <= s for s in sets):
            room = next((s for s in sets if len(s | small) <= k), None)
            if room is not None:
                sets.remove(room)
            sets.append(small | (room or frozenset()))
    return f"{len(sets)} shapes" if len(sets) > most else ""


def violations(proto: onnx.ModelProto, sparsity: dict[str, str]) -> list[str]:
    arrays = constants(proto)
    found = []
    for name, pattern in sparsity.items():
        parts, taps = matrices(proto, name, arrays[name])
        found += [
            f"{name}, group {g}: {pattern}: {why}" for g, m in enumerate(parts) if (why := fault(m, taps, pattern))
        ]
    return found


if __name__ == "__main__":
    with open(sys.argv[2], encoding="utf-8") as file:  # noqa: PTH123
        claimed = json.load(file).get("sparsity", {})
    wrong = violations(onnx.load(sys.argv[1]), claimed)
    print("\n".join([*wrong, f"{len(claimed)} layers claimed, {len(wrong)} wrong"]))
    sys.exit(bool(wrong))
