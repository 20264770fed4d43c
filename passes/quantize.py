"""`quantize`: weights of contractions as 8- or 4-bit codes with scales; activations stay floating-point.

Rows of a weight are its outputs, columns its inputs, tap by tap (`spa.sparsity.layers`). With calibration inputs, errors
are compensated column by column and biases absorb what the means of the inputs shift (`spa.sparsity.quantization`);
layers follow in order of execution, each fitted to what the quantised network before it computes, and towards what it gave
in the network as it came, where that helps on held-back inputs (`spa.sparsity.fitting`). Without, weights are rounded on
grids of least squared error. Exact zeros stay zero. Depthwise kernels, few and each its own filter, take 8 bits per
channel where the others take 4. A weight is left as it is where its codes and scales would take no fewer bytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from spa import progress
from spa.calibration import Walk, load
from spa.calibration.moments import Statistics
from spa.coupling import analyze
from spa.coupling.prepare import inlined
from spa.errors import Unsupported
from spa.inputs import Feeds
from spa.model import Model
from spa.passes import dequantize as export
from spa.passes.compensate import ensure_biases
from spa.passes.constants import lift_constants
from spa.pipeline import Result
from spa.shapes import tensor_of
from spa.sparsity.fitting import Inputs, aim, best_damping, refitted, relative_error, squared_error
from spa.sparsity.formats.encoding import Array, Coded, Grid
from spa.sparsity.layers import Layer, layers
from spa.sparsity.quantization import Encoding, quantise
from spa.sparsity.thinning import bias_of, gather

SPARED = ("Gather",)  # a table would be dequantised whole for every few rows that are read


@dataclass(frozen=True)
class Quantised:
    """What was done to one weight; `error`: squared, of its outputs with calibration, else of its entries, relative."""

    weight: str
    node: str
    bits: int
    group: int
    bytes: int
    error: float


@dataclass(frozen=True)
class Quantize:
    """Store weights as 8- or 4-bit integers with a scale per channel or group."""

    name: ClassVar[str] = "quantize"

    bits: Literal[8, 4] = 8
    group: int | Literal["channel", "tensor"] = "channel"  # columns of a row that share a scale
    symmetric: bool = True
    calib: str | None = None  # a file, or "synthetic"
    keep: tuple[str, ...] = ()  # patterns of weights and nodes that stay as they are
    nbits: bool = False  # com.microsoft's MatMulNBits where it fits

    def __post_init__(self) -> None:
        self.encoding()

    def encoding(self) -> Encoding:
        return Encoding(self.bits, self.group, self.symmetric)

    def run(self, model: Model) -> Result:
        feeds = load(self.calib, model) if self.calib is not None else None
        return quantize(model, self.encoding(), feeds, keep=self.keep, nbits=self.nbits)


def quantize(
    model: Model,
    encoding: Encoding | None = None,
    calib: list[Feeds] | None = None,
    *,
    keep: tuple[str, ...] = (),
    nbits: bool = False,
) -> Result:
    """The network with quantised weights; facts: one `Quantised` per weight, and bytes before and after.

    Raises `Unsupported` where the network's opset has no DequantizeLinear per channel and cannot be raised."""
    encoding = encoding or Encoding()
    working = prepared(model, encoding, biases=bool(calib))
    coupling = analyze(working)
    ours = working.ir.graph.initializers
    chosen = [x for x in layers(coupling) if x.weight.name in ours and eligible(x, encoding, keep)]
    walks = (Walk(coupling.model, calib), Walk(coupling.model, calib)) if calib and chosen else None
    biases: dict[str, Array] = {}
    found: dict[str, tuple[Layer, Coded]] = {}
    done = []
    for number, layer in enumerate(chosen):
        progress.tell("quantising layers", number, len(chosen))
        name = layer.weight.name or ""
        inputs = inputs_of(layer, *walks) if walks else None
        own = encoding_of(layer, encoding)
        array = tensor_of(layer.weight).numpy()  # type: ignore[union-attr]
        width = encoding.group if nbits and isinstance(encoding.group, int) and fits_nbits(layer, encoding) else None
        coded, error = encode(layer, array, own, inputs, width)
        found[name] = layer, coded
        done.append(Quantised(name, layer.node, own.bits, coded.grid.group, stored_bytes(coded), error))  # type: ignore[union-attr]
        if walks and name in walks[0].constants:
            new = layer.view.tensor(coded.dense().astype(np.float64), array)
            walks[0].replace(name, new)
            bias = bias_of(layer)
            if inputs is not None and bias is not None and bias.name in walks[0].constants:
                s = inputs.all
                shift = s.y - np.einsum("gof,gf->go", layer.view.matrix(new), s.x)
                was = walks[0].constant(bias.name)
                biases[bias.name] = (was + shift.reshape(was.shape)).astype(was.dtype)
                walks[0].replace(bias.name, biases[bias.name])
    before = sum(t.nbytes for v in working.ir.graph.initializers.values() if (t := v.const_value) is not None)
    out = write(working, found, biases, encoding, nbits)
    after = sum(t.nbytes for v in out.ir.graph.initializers.values() if (t := v.const_value) is not None)
    facts = {"weights": [asdict(q) for q in done], "bytes_before": before, "bytes_after": after}
    return Result(out, facts={"quantize": facts})


def encoding_of(layer: Layer, encoding: Encoding) -> Encoding:
    """A depthwise kernel holds next to nothing, and its rounding is averaged with nobody's."""
    return replace(encoding, bits=8, group="channel") if encoding.bits == 4 and layer.depthwise else encoding


def inputs_of(layer: Layer, walk: Walk, dense: Walk) -> Inputs | None:
    """At walks on their way to the layer; None where its inputs are not known, or several nodes read its weight."""
    if layer.op.out.name not in walk.place or len(layer.weight.uses()) > 1:
        return None
    return gather(layer, walk, dense)


def prepared(model: Model, encoding: Encoding, *, biases: bool) -> Model:
    """A copy: functions expanded, weights as initializers, of an opset that can say what is needed."""
    working = inlined(model)
    working = model.clone() if working is model else working
    lift_constants(working.ir)
    opset = working.ir.opset_imports.get("", 1)
    if encoding.bits == 4 and opset < export.BLOCKED:
        working = export.raised(working, export.BLOCKED) or working
    if working.ir.opset_imports.get("", 1) < export.PER_AXIS:
        newer = export.raised(working, export.PER_AXIS)
        if newer is None:
            what = f"opset {opset} has no DequantizeLinear per channel, and the network cannot be raised to 13"
            raise Unsupported(what, model.name, "export it with opset 13 or newer")
        working = newer
    return ensure_biases(working) if biases else working


def eligible(layer: Layer, encoding: Encoding, keep: tuple[str, ...]) -> bool:
    tensor = tensor_of(layer.weight)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or layer.op.kind in SPARED or not layer.size:
        return False
    if not layer.weight.is_initializer() or layer.weight.is_graph_input() or layer.weight.is_graph_output():
        return False
    if any(fnmatchcase(n, p) for p in keep for n in (layer.name, layer.node, layer.weight.name or "")):
        return False
    rows, cols = layer.size // layer.cols, layer.cols
    encoding = encoding_of(layer, encoding)
    scales = 1 if encoding.group == "tensor" else rows * -(-cols // encoding.width(cols))
    each = 4 if encoding.symmetric else 5
    return layer.size * encoding.bits / 8 + scales * each < layer.size * 4 and bool(np.isfinite(tensor.numpy()).all())


def encode(
    layer: Layer, array: Array, encoding: Encoding, inputs: Inputs | None, width: int | None
) -> tuple[Coded, float]:
    """The matrix [groups * rows, cols] of a layer on its grid, and the relative squared error this makes."""
    w = layer.view.matrix(array)
    if inputs is None or encoding.group == "tensor":
        coded = quantise(w.reshape(-1, layer.cols), encoding, None, width)
        return coded, relative(w.reshape(-1, layer.cols), coded.dense())
    goal = aimed(w, inputs)
    if goal is not None:
        trials = [on_grid(t, encoding, inputs.fitted, width).dense().reshape(w.shape) for t in (w, goal)]
        errors = [squared_error(t, inputs.held) for t in trials]
        w = goal if errors[1] < errors[0] else w
    coded = on_grid(w, encoding, inputs.all, width)
    return coded, relative_error(coded.dense().reshape(w.shape), inputs)


def aimed(w: Array, inputs: Inputs) -> Array | None:
    """Weights with the same zeros that come closer to what the layer gave; None where there is nothing to gain."""
    goal, share = aim(w, inputs)
    mask = w != 0
    if not share or not mask.any():
        return None
    return goal if mask.all() else refitted(goal, mask, inputs.all, best_damping(goal, mask, inputs))


def on_grid(w: Array, encoding: Encoding, s: Statistics, width: int | None) -> Coded:
    """Each group of w [groups, rows, cols] by its inputs' moment, stacked."""
    parts = [quantise(m, encoding, s.xx[g], width) for g, m in enumerate(w)]
    first = parts[0].grid
    assert first is not None
    scale = np.concatenate([p.grid.scale for p in parts])  # type: ignore[union-attr]
    zero = None if first.zero is None else np.concatenate([p.grid.zero for p in parts])  # type: ignore[union-attr]
    return Coded(np.concatenate([p.codes for p in parts]), Grid(first.bits, first.group, scale, zero))


def relative(w: Array, new: Array) -> float:
    """Squared change of the entries, over their squares."""
    energy = float(np.square(w).sum())
    return float(np.square(w - new).sum()) / energy if energy > 0 else 0.0


def fits_nbits(layer: Layer, encoding: Encoding) -> bool:
    return export.nbits_fits(layer.op.node, layer.weight, layer.view, encoding.group)


def stored_bytes(coded: Coded) -> int:
    assert coded.grid is not None
    return -(-coded.codes.size * coded.bits // 8) + sum(a.nbytes for a in coded.grid.arrays().values())


def write(
    model: Model, found: dict[str, tuple[Layer, Coded]], biases: dict[str, Array], encoding: Encoding, nbits: bool
) -> Model:
    out = model.clone()
    initializers = out.ir.graph.initializers
    for name, array in biases.items():
        initializers[name].const_value = ir.tensor(array, name=name)
    for name, (layer, coded) in found.items():
        value = initializers[name]
        node = next((use.node for use in value.uses()), None)
        if nbits and node is not None and export.nbits_fits(node, value, layer.view, encoding.group):
            export.matmul_nbits(out.ir, node, value, coded)
        else:
            export.dequantize(out.ir, value, layer.view, coded)
    return out
