"""Soup: the average of several networks that were trained apart from the same start (Wortsman et al., Model Soups,
arXiv 2203.05482).

    theta = sum_k a_k theta_k,   sum_k a_k = 1            uniform soup: a_k = 1/n (section 2, recipe 1)

over every floating-point constant, the statistics of normalisations too, summed in double precision. It works where the
networks lie in one basin: the same pruned network, fine-tuned with other seeds, rates or data. Averaging does not commute
with folding a normalisation into a convolution, so do it before `fold`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from spa.errors import UsageError
from spa.model import Model, load
from spa.passes.edit import constant_tensor, is_onnx, nodes, set_constant
from spa.pipeline import Result


@dataclass(frozen=True)
class Soup:
    """Averages the network with `models`; `weights`: one number per network, its own first, scaled to sum to one."""

    name: ClassVar[str] = "soup"

    models: tuple[str, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("no models")
        check_weights(self.weights, len(self.models) + 1)

    def run(self, model: Model) -> Result:
        others = [load(Path(path)) for path in self.models]
        return Result(average([model, *others], self.weights), None, {"soup": len(others) + 1})


def check_weights(weights: Sequence[float], count: int) -> None:
    if weights and len(weights) != count:
        raise ValueError(f"{len(weights)} weights for {count} models, the one given included")
    if weights and not (all(math.isfinite(w) and w >= 0 for w in weights) and sum(weights) > 0):
        raise ValueError(f"weights {list(weights)} are no shares")


def average(models: Sequence[Model], weights: Sequence[float] = ()) -> Model:
    """The weighted mean (uniform without `weights`), in the graph of the first. Nothing that is given changes.

    Raises `UsageError` where graphs, shapes, types or constants that are no weights differ, and says where."""
    if not models:
        raise UsageError("a soup of no models")
    try:
        check_weights(weights, len(models))
    except ValueError as error:
        raise UsageError(str(error)) from None
    shares = np.array(weights or [1.0] * len(models), np.float64)
    shares /= shares.sum()
    for other in models[1:]:
        require_same(models[0], other)
    out = models[0].clone()
    for values in zip(stored(out), *(stored(m) for m in models[1:]), strict=True):
        tensors = [held(v) for v in values]
        if tensors[0] is None or not tensors[0].dtype.is_floating_point():
            continue
        arrays = [t.numpy() for t in tensors if t is not None]
        if all(np.array_equal(arrays[0], a) for a in arrays[1:]):
            continue  # an epsilon, a mask of -inf
        total = np.zeros(arrays[0].shape, np.float64)
        for share, array in zip(shares, arrays, strict=True):
            total += share * array.astype(np.float64)
        set_constant(values[0], total.astype(arrays[0].dtype))
    return out


def greedy(models: Sequence[Model], evaluate: Callable[[Model], float]) -> tuple[Model, list[int]]:
    """Greedy soup (recipe 1 of the paper): from the best model on, each is kept that does not make the average worse.

    `evaluate`: higher is better, on data that is not the test set. Returns the soup and the numbers of its ingredients,
    in the order they went in. It is never worse, by `evaluate`, than the best of `models`."""
    if not models:
        raise UsageError("a soup of no models")
    alone = [evaluate(m) for m in models]
    order = [int(i) for i in np.argsort([-score for score in alone], kind="stable")]
    kept, soup, best = [order[0]], average([models[order[0]]]), alone[order[0]]
    for i in order[1:]:
        trial = average([models[k] for k in [*kept, i]])
        if (score := evaluate(trial)) >= best:
            kept, soup, best = [*kept, i], trial, score
    return soup, kept


# Are they the same network? --------------------------------------------------------------------------------------


def stored(model: Model) -> Iterator[ir.Value]:
    """Every value that holds a constant tensor: initializers by name, then Constant nodes in order; subgraphs too."""
    for graph in [model.ir.graph, *model.ir.graph.subgraphs()]:
        yield from (graph.initializers[name] for name in sorted(graph.initializers))
    for node in nodes(model.ir):
        if is_onnx(node, "Constant"):
            yield node.outputs[0]


def held(value: ir.Value) -> ir.TensorProtocol | None:
    node = value.producer()
    return value.const_value if node is None else constant_tensor(node)


def require_same(a: Model, b: Model) -> None:
    """Raises `UsageError` at the first difference that averaging cannot bridge."""
    where = f"{a.name} and {b.name}"

    def refuse(what: str) -> UsageError:
        return UsageError(f"no soup of different networks: {what}", where, "models fine-tuned from one pruned network")

    for one, other, kind in (
        (a.ir.graph.inputs, b.ir.graph.inputs, "inputs"),
        (a.ir.graph.outputs, b.ir.graph.outputs, "outputs"),
    ):
        if [v.name for v in one] != [v.name for v in other]:
            raise refuse(f"{kind} {[v.name for v in one]} and {[v.name for v in other]}")
    first, second = list(nodes(a.ir)), list(nodes(b.ir))
    if len(first) != len(second):
        raise refuse(f"{len(first)} nodes and {len(second)}")
    for x, y in zip(first, second, strict=True):
        if signature(x) != signature(y):
            raise refuse(
                f"node '{x.name}' ({x.op_type}) and node '{y.name}' ({y.op_type}) differ in operator, operands or attributes"
            )
    ours, theirs = list(stored(a)), list(stored(b))
    if names := {v.name for v in ours} ^ {v.name for v in theirs}:
        raise refuse(f"only one has the constants {sorted(map(str, names))[:4]}")
    for v, w in zip(ours, theirs, strict=True):
        s, t = held(v), held(w)
        if s is None or t is None:
            if s is not t:
                raise refuse(f"'{v.name}' is constant in one alone")
            continue
        if s.dtype != t.dtype or s.shape != t.shape:
            raise refuse(f"'{v.name}' is {s.dtype} {s.shape} and {t.dtype} {t.shape}")
        if not s.dtype.is_floating_point() and not np.array_equal(s.numpy(), t.numpy()):
            raise refuse(f"'{v.name}' ({s.dtype}) holds other numbers; quantise after averaging")
    if functions(a.ir) != functions(b.ir):
        raise refuse("local functions")


def signature(node: ir.Node) -> tuple[Any, ...]:
    """What two nodes must agree in. Names of nodes are free; numbers of Constant nodes are compared with the weights."""
    free = is_onnx(node, "Constant")
    attributes = {
        n: str(a.value) if a.type != ir.AttributeType.TENSOR else a.as_tensor().tobytes()
        for n, a in node.attributes.items()
        if not free and a.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    }
    inputs = [v.name if v is not None else None for v in node.inputs]
    return node.domain, node.op_type, inputs, [v.name for v in node.outputs], attributes


def functions(model: ir.Model) -> dict[Any, bytes]:
    return {key: ir.to_proto(f).SerializeToString(deterministic=True) for key, f in model.functions.items()}
