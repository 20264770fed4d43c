"""`sparsify`: thin out the weights that stay, in a pattern, and mend what is left of them.

1. layers get their patterns; the first and the last, depthwise, tiny ones and embeddings are spared
   (`spa.sparsity.selection`)
2. shares that can differ from layer to layer are distributed (`spa.sparsity.densities`)
3. masks and refit, in one walk (`spa.sparsity.thinning`)
4. every layer is held against its pattern, or nothing comes out
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from spa.errors import CheckFailed, UsageError
from spa.inputs import Feeds
from spa.model import Model
from spa.pipeline import Result
from spa.shapes import constants, tensor_of
from spa.sparsity.densities import distribute
from spa.sparsity.layers import Layer
from spa.sparsity.layers import layers as layers_of
from spa.sparsity.patterns import Pattern, parse
from spa.sparsity.selection import Spared, overrides, select
from spa.sparsity.thinning import Thinned, thin, workbench, write_back
from spa.spill import release

Criterion = Literal["auto", "magnitude", "wanda", "dsnot", "sparsegpt", "admm"]
Distribution = Literal["auto", "uniform", "lamp", "global", "curves"]


@dataclass(frozen=True)
class Sparsify:
    """Thin out weights in a pattern such as 2:4, block4x1:0.5 or unstructured:0.8.

    `layers`: glob=pattern for some, on weights or nodes; `dense`: those left alone. `calib`: as on the command line; "none"
    goes by magnitude."""

    name: ClassVar[str] = "sparsify"

    pattern: str
    layers: tuple[str, ...] = ()
    dense: tuple[str, ...] = ()
    criterion: Criterion = "auto"
    distribution: Distribution = "auto"
    calib: str | None = None
    refit: bool = True
    seed: int = 0

    def run(self, model: Model) -> Result:
        from spa.calibration import load

        feeds = load(self.calib, model, seed=self.seed) if self.calib else None
        return sparsify(
            model,
            self.pattern,
            calib=feeds,
            layers=self.layers,
            dense=self.dense,
            criterion=self.criterion,
            distribution=self.distribution,
            refit=self.refit,
        )


def sparsify(
    model: Model,
    pattern: str | None,
    *,
    calib: list[Feeds] | None = None,
    layers: Sequence[str] = (),
    dense: Sequence[str] = (),
    criterion: Criterion = "auto",
    distribution: Distribution = "auto",
    refit: bool = True,
    like: Model | None = None,
) -> Result:
    """A copy of `model` with thin layers; facts under `sparsity`. Without `calib` by magnitude, and nothing is mended.

    `like`: a thin network of the same structure whose masks are taken.
    Raises `UsageError` for what is no pattern and for rules that match no layer, `CheckFailed` where a layer does not
    have its pattern in the end."""
    default = parse(pattern) if pattern is not None else None
    if not calib and criterion not in ("auto", "magnitude"):
        raise UsageError(f"the criterion {criterion} needs calibration inputs", hint="--calib FILE.npz or synthetic")
    rules = [*overrides(layers), *((g, None) for g in dense)]
    out = with_biases(model) if calib and refit else model.clone()
    coupling = workbench(out)
    chosen, spared = select(coupling, layers_of(coupling), default, rules)
    ours = {layer: p for layer, p in chosen.items() if p == default}
    how = distribution if calib or distribution != "curves" else "lamp"
    chosen |= distribute(coupling, ours, how, calib, criterion=criterion)
    new, done = thin(coupling, chosen, calib, criterion=criterion if calib else "magnitude", mend=refit, like=like)
    out = without_idle_biases(write_back(out, new))
    require_patterns(out, chosen)
    return Result(out, facts={"sparsity": summary(pattern, done, spared)})


def summary(pattern: str | None, done: Sequence[Thinned], spared: Sequence[Spared]) -> dict[str, Any]:
    weights, nonzeros = sum(d.weights for d in done), sum(d.nonzeros for d in done)
    return {
        "pattern": pattern,
        "weights": weights,
        "nonzeros": nonzeros,
        "density": round(nonzeros / weights, 4) if weights else 1.0,
        "layers": [{k: v for k, v in asdict(d).items() if v is not None} for d in done],
        "spared": [asdict(s) for s in spared],
    }


def replayed(record: Mapping[str, Any]) -> list[str]:
    """The rules that give every layer of a plan's `sparsity` its pattern again."""
    return [f"{glob.escape(name)}={pattern}" for name, pattern in record.items()]


def require_patterns(model: Model, chosen: Mapping[Layer, Pattern]) -> None:
    """Raise `CheckFailed` where a layer of the result does not have the pattern it was given."""
    tensors = {name: tensor_of(value) for value, name in constants(model.ir).items()}
    for layer, pattern in chosen.items():
        tensor = tensors.get(layer.name)
        fine = tensor is not None and all(pattern.check(m, layer.view.taps) for m in layer.view.matrix(tensor.numpy()))
        release(tensor)
        if not fine:
            raise CheckFailed(
                f"the weight '{layer.name}' does not have the pattern {pattern}", layer.node, "report the model"
            )


BIAS = "/spa.bias"


def with_biases(model: Model) -> Model:
    from spa.passes.compensate import ensure_biases

    return ensure_biases(model)


def without_idle_biases(model: Model) -> Model:
    """Biases that were added to take up means and stayed zero are taken away again, in place."""
    graph = model.ir.graph
    for name, value in list(graph.initializers.items()):
        idle = name.endswith(BIAS) and value.const_value is not None and not np.any(value.const_value.numpy())
        if idle:
            for node, position in list(value.uses()):
                if position == 2 and len(node.inputs) == 3:
                    node.resize_inputs(2)
            if not value.uses():
                del graph.initializers[name]
    return model
