"""Thinning: masks and refitted weights for all chosen layers, in one walk through the network as it becomes.

Each layer is fitted to what it will read, the activations of the network whose earlier layers are thin already, beside
a walk through the dense network. Memory holds one layer's moments and the activations in flight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spa import execution, progress
from spa.calibration import MAX_FEATURES, Walk, measure
from spa.coupling import Coupling, analyze
from spa.coupling.prepare import inlined
from spa.model import Model
from spa.shapes import constants, tensor_of
from spa.sparsity.fitting import Inputs, fit
from spa.sparsity.layers import Array, Layer
from spa.sparsity.patterns import Pattern
from spa.spill import LEAST, release, spilled

if TYPE_CHECKING:
    from spa.inputs import Feeds

Constant = Array | ir.TensorProtocol


@dataclass(frozen=True)
class Thinned:
    """What was done to one layer. Errors are squared, on held-back inputs, relative to the variance of its outputs in
    the dense network: masked only, and refitted."""

    weight: str
    node: str
    pattern: str
    weights: int
    nonzeros: int
    shape: tuple[int, int, int]  # groups, rows, cols
    taps: int
    criterion: str
    damping: float | None = None
    share: float | None = None
    masked: float | None = None
    refitted: float | None = None


def gather(layer: Layer, walk: Walk, dense: Walk) -> Inputs | None:
    """Statistics of what a layer reads, columns in its order, at walks on their way to it; None where it is not known."""
    reader, name = layer.reader, layer.weight.name or ""
    if reader is None or layer.cols > MAX_FEATURES or not walk.live or name not in walk.constants:
        return None
    moments = measure(reader, reader.observe(walk), reader.observe(dense), dense.constant(name))
    return Inputs(moments, layer.order, bias_of(layer) is not None)


def bias_of(layer: Layer) -> ir.Value | None:
    """The constant that takes up the means of what the layer reads."""
    return layer.reader.bias() if layer.reader is not None and layer.alone else None


def thin(
    coupling: Coupling,
    chosen: Mapping[Layer, Pattern],
    feeds: list[Feeds] | None,
    *,
    criterion: str = "auto",
    mend: bool = True,
    like: Model | None = None,
) -> tuple[dict[str, Constant], list[Thinned]]:
    """New constants by name, and what was done; without `feeds` by magnitude alone. What lay in a file does so again.

    `like`: a network whose zeros are the masks of the layers that it has too."""
    masks = {name: value for value, name in constants(like.ir).items()} if like is not None else {}
    walks = (Walk(coupling.model, feeds), Walk(coupling.model, feeds)) if feeds else None
    new: dict[str, Constant] = {}
    done = []
    for number, (layer, pattern) in enumerate(chosen.items()):
        old, name = array_of(layer.weight), layer.weight.name or ""
        # what several nodes read has no one input to fit
        how = {"criterion": criterion, "mend": mend} if layer.alone else {"criterion": "wanda", "mend": False}
        with execution.blas(layer.cols):
            inputs = gather(layer, *walks) if walks and (mend or criterion != "magnitude") else None
            mask = layer.view.matrix(array_of(masks[layer.name])) != 0 if layer.name in masks else None
            found = fit(layer.view.matrix(old), inputs, pattern, layer.view.taps, mask=mask, **how)  # type: ignore[arg-type]
        array = layer.view.tensor(found.weight, old)
        file = isinstance(tensor_of(layer.weight), ir.ExternalTensor)
        new[layer.name] = spilled(array, layer.name) if file and array.nbytes > LEAST else array
        if walks and name in walks[0].constants:
            walks[0].replace(name, new[layer.name])
            bias = bias_of(layer)
            if bias is not None and found.shift is not None and mend:
                was = walks[0].constant(bias.name or "")
                # the layer gave y + b, and shall again
                shifted = (was + found.shift.reshape(was.shape)).astype(was.dtype)
                new[bias.name or ""] = shifted
                walks[0].replace(bias.name or "", shifted)
        count = int(np.count_nonzero(array))
        view = layer.view
        done.append(
            Thinned(layer.name, layer.node, str(pattern), array.size, count, view.shape, view.taps, **found.facts)
        )
        del old, inputs, found, array
        release(tensor_of(layer.weight))
        progress.tell("thinning layers", number + 1, len(chosen))
    return new, done


def array_of(value: ir.Value) -> npt.NDArray[Any]:
    tensor = tensor_of(value)
    assert tensor is not None
    return tensor.numpy()


def workbench(model: Model) -> Coupling:
    """The network to work on: local functions expanded, Constant nodes as initializers."""
    from spa.passes.constants import lift_constants

    working = inlined(model)
    working = model.clone() if working is model else working
    lift_constants(working.ir)
    return analyze(working)


def write_back(model: Model, new: Mapping[str, Constant]) -> Model:
    """A copy of `model` with these constants, by the names that plans give them."""
    out = model.clone()
    for value, name in constants(out.ir).items():
        if name in new:
            old = tensor_of(value)
            assert old is not None
            found = new[name]
            tensor = ir.tensor(found, name=old.name) if isinstance(found, np.ndarray) else found
            node = value.producer()
            if node is None:
                value.const_value = tensor
            else:
                node.attributes["value"] = ir.AttrTensor("value", tensor)
                value.const_value = None
    return out
