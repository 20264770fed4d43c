"""Inputs to verify with: drawn from declared types and shapes, integers from the range of what they index."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spa.errors import CheckFailed, UsageError
from spa.shapes import Shapes, infer, input_shape

if TYPE_CHECKING:
    from spa.model import Model

Feeds = dict[str, npt.NDArray[Any]]

# (op, input position of the indices) -> (input position of the table, attribute that names the axis)
INDEXES = {
    ("Gather", 1): (0, "axis"), ("GatherElements", 1): (0, "axis"), ("GatherND", 1): (0, None), ("ScatterElements", 1): (0, "axis"),
    ("ScatterND", 1): (0, None), ("EmbedLayerNormalization", 0): (2, None), ("EmbedLayerNormalization", 1): (4, None),
    ("ArrayFeatureExtractor", 1): (0, "last"),
}  # fmt: skip
# indices pass through these unchanged (input 0)
PASSES = {
    "Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Identity", "Expand", "Tile", "Slice", "Split", "Concat", "Add",
    "Where", "Clip", "Gather", "SplitToSequence", "SequenceAt", "GatherElements", "Max", "Min",
}  # fmt: skip
LENGTHS = {("LSTM", 4), ("GRU", 4), ("RNN", 4), ("ReverseSequence", 1)}


def index_limit(value: ir.Value, shapes: Shapes, depth: int = 0) -> int | None:
    """One more than the largest integer that may stand in `value`, from the tables it ends up indexing."""
    limits: list[int] = []
    for node, position in value.uses():
        if (table := INDEXES.get((node.op_type, position))) is not None:
            data = node.inputs[table[0]]
            shape = shapes.shape.get(data) if data is not None else None
            if shape:
                given = node.attributes.get(table[1] or "")
                limits.append(shape[-1 if table[1] == "last" else given.as_int() if given is not None else 0])
        elif (node.op_type, position) in LENGTHS:
            x = shapes.shape.get(node.inputs[0]) if node.inputs[0] is not None else None
            limits.append(x[0] + 1 if x else 2)
        elif node.op_type == "OneHot" and position == 0:
            known = shapes.static(node.inputs[1])
            limits.append(int(known.reshape(-1)[0]) if known is not None else 2)
        if depth < 32 and (node.op_type in PASSES and not (node.op_type == "Gather" and position == 1)):
            limits += [n for out in node.outputs if (n := index_limit(out, shapes, depth + 1)) is not None]
    return min(limits) if limits else None


def draw(
    model: Model,
    *,
    seed: int = 0,
    sizes: dict[str, int] | None = None,
    integers: str = "traced",
    shapes: Shapes | None = None,
) -> Feeds:
    """One set of inputs. Floats are standard normal, booleans fair; integers lie in the range of the table they index;
    where they index none, `integers` says what: "traced" (0 or 1), "ones" or "zeros"."""
    shapes = shapes or infer(model.ir, sizes)
    feeds: Feeds = {}
    initial = {v.name for v in model.ir.graph.initializers.values()}
    rng = np.random.default_rng(seed)
    for value in model.ir.graph.inputs:
        if value.name in initial:
            continue
        shape = input_shape(value, shapes.sizes)
        if shape is None or value.dtype is None or value.dtype == ir.DataType.STRING:
            raise UsageError(
                f"cannot draw the input '{value.name}' ({value.type}, shape {value.shape})", hint="--inputs FILE.npz"
            )
        dtype = value.dtype.numpy()
        if value.dtype.is_floating_point():
            array: npt.NDArray[Any] = rng.standard_normal(shape)
        elif value.dtype == ir.DataType.BOOL:
            array = rng.integers(0, 2, shape)
        else:
            limit = index_limit(value, shapes)
            array = rng.integers(0, max(1, limit), shape) if limit is not None else rng.integers(0, 2, shape)
            if limit is not None and any((n.op_type, i) in LENGTHS for n, i in value.uses()):
                array = rng.integers(1, limit, shape)
            if limit is None and integers != "traced":
                array = np.full(shape, int(integers == "ones"))
        feeds[value.name or ""] = np.asarray(array).astype(dtype)
    return feeds


def attempts(model: Model, *, seed: int, sizes: dict[str, int] | None = None) -> Iterator[Feeds]:
    """Inputs in the order in which they are worth trying, until the network runs on one."""
    shapes = infer(model.ir, sizes)
    for integers in ("traced", "ones", "zeros"):
        yield draw(model, seed=seed, sizes=sizes, integers=integers, shapes=shapes)


def load(path: str | Path, model: Model) -> list[Feeds]:
    """Inputs from an npz file: one array per input name; an extra leading axis means several sets."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot read the inputs: {error}", str(path), "an .npz file with one array per network input"
        ) from None
    initial = {v.name for v in model.ir.graph.initializers.values()}
    names = [v.name or "" for v in model.ir.graph.inputs if v.name not in initial]
    if missing := [n for n in names if n not in arrays]:
        raise UsageError(
            f"no array for the input '{missing[0]}'; the file has {sorted(arrays)}",
            str(path),
            f"name the arrays {names}",
        )
    ranks = {v.name: None if v.shape is None else len(v.shape) for v in model.ir.graph.inputs}
    several = all(ranks[n] is not None and arrays[n].ndim == ranks[n] + 1 for n in names)  # type: ignore[operator]
    if not several:
        return [{n: arrays[n] for n in names}]
    return [{n: arrays[n][i] for n in names} for i in range(min(len(arrays[n]) for n in names))]


def none_runs(model: Model, why: str) -> CheckFailed:
    inputs = ", ".join(f"{v.name} {v.dtype} {v.shape}" for v in model.ir.graph.inputs)
    return CheckFailed(
        f"no drawn input makes the network run: {why}",
        f"inputs {inputs}",
        "--inputs FILE.npz with one array per input, or --shape NAME:1,3,224,224",
    )
