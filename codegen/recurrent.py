"""LSTM, GRU and RNN as a product over all steps at once, and one operator for what goes step by step.

`Recurrent` (no operator of ONNX's; `codegen/kernels/recurrent.py` computes it) takes
    gates [steps, batch, directions * n * hidden]: X W^T and the biases, n gates in ONNX's order;
    R [directions, n * hidden, hidden], initial h and c [directions, batch, hidden] or "",
    the bias of the candidate inside its product [directions, hidden] or "" (GRU with linear_before_reset),
    peepholes [directions, 3 * hidden] or "", and the steps of each row of the batch, where not all are whole;
and gives [steps + 2, directions, batch, hidden]: h of each step, the last h, and the last c (LSTM; else zeros).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto

from spa.codegen.replacing import Builder, attributes, replaced, where
from spa.errors import Unsupported

Array = np.ndarray[Any, Any]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
# activation -> defaults of its alpha and beta, as far as it has them
ACTIVATIONS: dict[str, tuple[float, ...]] = {
    **dict.fromkeys(("Sigmoid", "Tanh", "Relu"), ()),
    "HardSigmoid": (0.2, 0.5),
    "LeakyRelu": (0.01,),
    "Elu": (1.0,),
}


def unroll(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its recurrent layers in these terms; changed in place. Raises `Unsupported` for those that cannot be."""
    return replaced(model, dict.fromkeys(GATES, _recurrent))


@dataclass(frozen=True)
class _Sizes:
    steps: int
    batch: int
    hidden: int
    directions: int
    gates: int


def _recurrent(node: NodeProto, build: Builder) -> None:
    options, op = attributes(node), node.op_type
    names = [*node.input, *[""] * (8 - len(node.input))]
    x, w, r, b, lengths, h, c, peepholes = names
    weights = [build.const(n) if n else None for n in (w, r, b, peepholes)]
    if any(n and v is None for n, v in zip((w, r, b, peepholes), weights, strict=True)):
        raise _refused(node, "its weights are computed")
    shape = build.shape(x)
    if shape is None:
        raise _refused(node, "its input has no fixed shape")
    if options.get("clip", 0) or options.get("input_forget", 0):
        raise _refused(node, "the attributes clip and input_forget are not known")
    batch_first = bool(options.get("layout", 0))
    steps, batch = (shape[1], shape[0]) if batch_first else shape[:2]
    known = build.const(lengths) if lengths else np.full(batch, steps)
    if known is None or not 1 <= known.min() <= known.max() <= steps:
        raise _refused(node, "its sequence_lens are computed, or empty")
    weight, recurrence, bias, peep = weights
    assert weight is not None and recurrence is not None
    s = _Sizes(steps, batch, recurrence.shape[2], recurrence.shape[0], GATES[op])
    if batch_first:
        x = build.add("Transpose", [x], perm=[1, 0, 2])
        h, c = (build.add("Transpose", [n], perm=[1, 0, 2]) if n else "" for n in (h, c))
    gates, inner = _gates(build, node, x, weight, bias, s)
    direction = options.get("direction", b"forward").decode()
    whole = build.add(
        "Recurrent",
        [gates, build.constant(recurrence), h, c, inner, build.constant(peep) if peep is not None else ""]
        + ([build.constant(known.astype(np.int32))] if (known < steps).any() else []),
        (s.steps + 2, s.directions, s.batch, s.hidden),
        domain="spa",
        kind=op,
        backward=[int(direction == "reverse" or d == 1) for d in range(s.directions)],
        linear_before_reset=int(options.get("linear_before_reset", 0)),
        **_activations(node, options, s.directions),
    )
    for i, (first, count) in enumerate(((0, s.steps), (s.steps, 1), (s.steps + 1, 1))):
        if i >= len(node.output) or not node.output[i]:
            continue
        bounds = [build.constant(np.array([n], np.int64)) for n in (first, first + count, 0)]
        part = build.add("Slice", [whole, *bounds], (count, s.directions, s.batch, s.hidden))
        if i:
            part = build.add("Squeeze", [part, bounds[2]], (s.directions, s.batch, s.hidden))
        if batch_first:
            build.name("Transpose", [part], node.output[i], perm=[2, 0, 1, 3] if i == 0 else [1, 0, 2])
        else:
            build.name("Identity", [part], node.output[i])


def _gates(build: Builder, node: NodeProto, x: str, weight: Array, bias: Array | None, s: _Sizes) -> tuple[str, str]:
    """The name of X W^T and biases, and of the bias of a GRU's candidate if that belongs inside."""
    columns = np.ascontiguousarray(weight.reshape(-1, weight.shape[2]).T)
    width = s.directions * s.gates * s.hidden
    product = build.add("MatMul", [x, build.constant(columns)], (s.steps, s.batch, width))
    if bias is None:
        return product, ""
    of_input, of_state = np.split(bias.reshape(s.directions, 2, s.gates, s.hidden), 2, axis=1)
    inner = ""
    of_state = of_state.copy()
    if node.op_type == "GRU" and attributes(node).get("linear_before_reset", 0):
        inner = build.constant(of_state[:, 0, 2].copy())
        of_state[:, :, 2] = 0
    summed = (of_input + of_state).reshape(-1)
    return build.add("Add", [product, build.constant(summed)], (s.steps, s.batch, width)), inner


def _activations(node: NodeProto, options: Mapping[str, Any], directions: int) -> dict[str, Any]:
    """`activations`, and three numbers for each: how many of alpha and beta there are, and those. Both directions' must agree."""
    each = len(DEFAULTS[node.op_type])
    names = [n.decode() for n in options.get("activations", ())] or [*DEFAULTS[node.op_type]] * directions
    given = {key: list(options.get(f"activation_{key}", ())) for key in ("alpha", "beta")}
    numbers: list[float] = []
    for name in names:
        if name not in ACTIVATIONS:
            raise _refused(node, f"its activation {name} is not known")
        own = [
            given[key].pop(0) if given[key] else default
            for key, default in zip(("alpha", "beta"), ACTIVATIONS[name], strict=False)
        ]
        numbers += [float(n) for n in (*own, 0, 0)][:2]
    halves = [(names[i : i + each], numbers[2 * i : 2 * (i + each)]) for i in range(0, len(names), each)]
    if any(half != halves[0] for half in halves):
        raise _refused(node, "its directions have different activations")
    return {"activations": halves[0][0], "numbers": halves[0][1]}


def _refused(node: NodeProto, why: str) -> Unsupported:
    return Unsupported(f"{node.op_type} cannot be compiled: {why}", where(node), "export it another way, or cut it off")
