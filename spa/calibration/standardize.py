"""Statistics stored in BatchNormalization, put to use where there are no data.

A normalisation remembers the mean and variance that its input had on the training data. Drawn inputs have others, and
the more so the deeper. `standardize` replaces what is stored by what the drawn inputs have, layer after layer: every
channel behind a normalisation then has the mean (beta) and the spread (gamma) that it has on real data, and so the
second moments that repair and choice rest on are those of plausible activations. The weights are not touched; once
they are mended, `restore` puts the stored statistics back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from spa.calibration.readers import Array
from spa.calibration.walk import Walk
from spa.inputs import Feeds

if TYPE_CHECKING:
    import onnx

    from spa.model import Model


def standardize(model: Model, feeds: Sequence[Feeds]) -> Model:
    """A copy whose normalisations normalise what `feeds` give them; `model` itself where there are none."""
    walk = Walk(model, feeds)
    found: dict[str, Array] = {}
    for node in normalisations(walk):
        walk.advance(node.output[0])
        mean, variance = channel_statistics([values[node.input[0]] for values in walk.live])
        for name, array in zip(node.input[3:5], (mean, variance), strict=True):
            found[name] = array.astype(walk.constant(name).dtype)
            walk.replace(name, found[name])
    if not found:
        return model
    copy = model.clone()
    for name, array in found.items():
        copy.ir.graph.initializers[name].const_value = ir.Tensor(array, name=name)
    return copy


def restore(changed: Model, original: Model) -> Model:
    """A copy of `changed` with the statistics of `original` (same names and sizes: before anything is sliced)."""
    copy = changed.clone()
    for node in original.ir.graph:
        if node.op_type != "BatchNormalization":
            continue
        for value in node.inputs[3:5]:
            here = copy.ir.graph.initializers.get(value.name or "") if value is not None else None
            if here is not None and value is not None and value.const_value is not None:
                here.const_value = value.const_value
    return copy


def normalisations(walk: Walk) -> list[onnx.NodeProto]:
    """In the order of the graph; only those that alone read their statistics."""
    uses = Counter(name for node in walk.nodes for name in node.input)
    return [
        node
        for node in walk.nodes
        if node.op_type == "BatchNormalization"
        and not any(a.name == "training_mode" and a.i for a in node.attribute)
        and all(name in walk.constants and uses[name] == 1 for name in node.input[3:5])
    ]


def channel_statistics(batches: Sequence[Array]) -> tuple[Array, Array]:
    """Mean and variance [C] over all samples and positions of batches [N, C, ...]."""
    flat = [np.moveaxis(b, 1, 0).reshape(b.shape[1], -1) for b in batches]
    count = sum(b.shape[1] for b in flat)
    mean = np.sum([b.sum(1, dtype=np.float64) for b in flat], axis=0) / count
    squares = np.sum([((b - mean[:, None]) ** 2).sum(1) for b in flat], axis=0) / count
    return mean, np.maximum(squares, 1e-8)  # a dead channel stays finite
