"""Calibration inputs without data: pictures, signals, sequences and tokens that look like what networks see."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from spa.calibration.pictures import noise, pictures
from spa.calibration.readers import Array, Matrix
from spa.calibration.walk import open_session
from spa.inputs import Feeds
from spa.shapes import infer, tensor_of

if TYPE_CHECKING:
    from spa.model import Model

SYNTHETIC = 256  # inputs drawn where there is no data
ELEMENTS = 1 << 26  # fewer inputs where they are larger than this in all
BATCH = 16  # where the network leaves it open
CHANNELS = (1, 3, 4)  # an axis of such a size is that of a picture's channels
SPREAD = 0.65  # of pre-activations behind the first layer: trained networks with folded normalisations have 0.4 to 0.9
SMALLEST = 8  # pixels along a side of a picture


class Drawn(list[Feeds]):
    """Feeds that were drawn, not given: statistics on them are plausible, not true (see `standardize`)."""


def synthetic(model: Model, *, sizes: dict[str, int] | None = None, seed: int = 0, samples: int = SYNTHETIC) -> Drawn:
    """About `samples` drawn inputs, as feeds of the network's batch size; the same for the same seed."""
    from spa.inputs import draw

    shapes = infer(model.ir, open_batch(model) | (sizes or {}))
    inputs = {v.name or "": v for v in model.ir.graph.inputs}
    rng = np.random.default_rng(seed)
    feeds, rows, elements = Drawn(), 0, 0
    gains: dict[str, float] | None = None
    while not feeds or (rows < samples and elements < ELEMENTS):
        feed = draw(model, seed=seed + len(feeds), shapes=shapes)
        feed = {name: plausible(inputs[name], a, rng, (gains or {}).get(name, 1.0)) for name, a in feed.items()}
        if gains is None:
            gains = input_gains(model, feed)
            continue  # once more, scaled
        feeds.append(feed)
        rows += min((len(a) for a in feed.values() if a.ndim), default=1)
        elements += sum(a.size for a in feed.values())
    return feeds


def open_batch(model: Model) -> dict[str, int]:
    """The size of the symbol that stands first in every input, where one does."""
    initial = {v.name for v in model.ir.graph.initializers.values()}
    first = {
        str(v.shape[0]) for v in model.ir.graph.inputs if v.name not in initial and v.shape is not None and v.shape
    }
    return {symbol: BATCH for symbol in first if len(first) == 1 and not symbol.isdigit() and symbol != "None"}


def plausible(value: ir.Value, array: Array, rng: np.random.Generator, gain: float = 1.0) -> Array:
    """`array` (as `spa.inputs.draw` gives it) replaced by something like the data that such an input is made for."""
    kind = array.dtype.kind
    axis = channel_axis(array.shape)
    if axis is not None and (kind == "f" or array.dtype == np.uint8):
        order = (0, 3, 1, 2) if axis == 3 else (0, 1, 2, 3)
        n, c, h, w = (array.shape[i] for i in order)
        x: Matrix = np.transpose(pictures((n, c, h, w), rng), np.argsort(order))
    elif kind == "f" and array.ndim >= 3 and min(array.shape[-2:]) > 1:
        x = noise(array.shape, 1.0, rng)  # spectrograms, frames of features: neighbours are alike
    else:
        return array
    if array.dtype == np.uint8:
        return np.clip(127.5 + 60 * x, 0, 255).astype(np.uint8)
    scale, shift = normalisation(value)
    return np.asarray((gain * x - shift) / scale, array.dtype)


def channel_axis(shape: tuple[int, ...]) -> int | None:
    """1 (NCHW) or 3 (NHWC) for what may be a batch of pictures.

    >>> channel_axis((1, 3, 32, 32)), channel_axis((1, 32, 32, 3)), channel_axis((1, 3, 4, 4)), channel_axis((1, 8, 8))
    (1, 3, None, None)
    """
    if len(shape) != 4:
        return None
    for axis, sides in ((1, shape[2:]), (3, shape[1:3])):
        if shape[axis] in CHANNELS and min(sides) >= SMALLEST:
            return axis
    return None


def normalisation(value: ir.Value) -> tuple[Array, Array]:
    """(scale, shift), so that scale * input + shift is what the network itself makes of its input before it looks at it.

    Read off a chain of Sub, Add, Mul and Div by constants, and of a BatchNormalization of the input: where a network
    brings its own scaling, its inputs have the range that this scaling expects (0 to 255, say)."""
    scale, shift = np.ones(()), np.zeros(())
    while len(uses := list(value.uses())) == 1:
        node, position = uses[0]
        if node.op_type in ("Cast", "Identity"):
            value = node.outputs[0]
            continue
        constants = [
            t.numpy().astype(np.float64) if (t := tensor_of(v)) is not None else None for v in node.inputs if v
        ]
        if node.op_type == "BatchNormalization" and len(constants) == 5 and all(c is not None for c in constants[1:]):
            rank = 4 if value.shape is None else len(value.shape)
            mean, variance = (np.reshape(c, (-1, *[1] * (rank - 2))) for c in constants[3:] if c is not None)
            deviation = np.sqrt(variance + 1e-5)
            return scale / deviation, (shift - mean) / deviation
        other = constants[1 - position] if len(constants) == 2 else None
        if other is None or (node.op_type in ("Sub", "Div") and position):
            break
        if node.op_type in ("Mul", "Div"):
            factor = other if node.op_type == "Mul" else 1 / other
            scale, shift = scale * factor, shift * factor
        elif node.op_type in ("Add", "Sub"):
            shift = shift + (other if node.op_type == "Add" else -other)
        else:
            break
        value = node.outputs[0]
    if not (np.all(np.isfinite(scale)) and np.all(scale != 0) and math.isfinite(float(np.sum(shift)))):
        return np.ones(()), np.zeros(())
    return scale, shift


def input_gains(model: Model, feed: Feeds) -> dict[str, float]:
    """Input -> factor that gives the first layer's pre-activations the spread they are likely to have on real data.

    Trained networks normalise: behind the first layer stands a spread that is stored (BatchNormalization), or one of
    about `SPREAD` (its scale, folded into the weights). Inputs that lead elsewhere have the wrong scale."""
    proto = model.to_proto()
    wanted: dict[str, float] = {}
    heads: dict[str, str] = {}
    for value in model.ir.graph.inputs:
        array = feed.get(value.name or "")
        if array is None or array.dtype.kind != "f" or array.ndim < 3:
            continue
        node = first_layer(value)
        if node is None or not node.outputs[0].name:
            continue
        heads[value.name or ""], wanted[value.name or ""] = node.outputs[0].name, stored_spread(node) or SPREAD
    if not heads:
        return {}
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in dict.fromkeys(heads.values()))
    session = open_session(proto)
    needed = {i.name for i in session.get_inputs()}
    results: list[Array] = session.run(None, {n: feed[n] for n in needed})  # type: ignore[assignment,unused-ignore]
    found = dict(zip(dict.fromkeys(heads.values()), results, strict=True))
    gains = {}
    for name, head in heads.items():
        y = np.moveaxis(found[head], 1, -1) if found[head].ndim > 3 else found[head]
        spread = float(np.median(y.reshape(-1, y.shape[-1]).astype(np.float64).std(0)))
        if np.isfinite(spread) and spread > 0:
            gains[name] = float(np.clip(wanted[name] / spread, 1e-3, 1e3))
    return gains


def first_layer(value: ir.Value) -> ir.Node | None:
    """The first contraction with constant weights on the way from an input, where the way does not fork."""
    for _ in range(12):
        uses = list(value.uses())
        if len(uses) != 1:
            return None
        node, position = uses[0]
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            return node if position == 0 and tensor_of(node.inputs[1]) is not None else None
        if node.op_type not in ("Cast", "Identity", "Transpose", "Reshape", "Sub", "Add", "Mul", "Div", "Pad"):
            return None
        value = node.outputs[0]
    return None


def stored_spread(layer: ir.Node) -> float | None:
    """Median standard deviation that a BatchNormalization behind the layer has stored."""
    for node, _ in layer.outputs[0].uses():
        tensor = tensor_of(node.inputs[4]) if node.op_type == "BatchNormalization" else None
        if tensor is not None:
            return float(np.median(np.sqrt(np.maximum(tensor.numpy().astype(np.float64), 0)))) or None
    return None
