"""Sandwiches: a weight, the operators under test, a weight that reads them; pruned, and held against the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import few_ops
import numpy as np
import numpy.typing as npt
import onnx
from few_ops import node
from onnx import helper
from oracle import Removed, Runner, masked, onnxruntime, reference

import spa
from spa.allocate import spare
from spa.model import Model
from spa.planning import from_masks

Array = npt.NDArray[Any]


def check(
    model: Model,
    seed: int = 0,
    *,
    cuts: str = "",
    keeps: str = "",
    given: Mapping[str, Array] | None = None,
    runner: Runner = onnxruntime,
    atol: float = 2e-5,
    checked: bool = True,
    full_check: bool = True,
) -> tuple[Model, Removed]:
    """Remove random channels of random groups, and hold the result against the masked dense network.

    `cuts`: constants that must lose something when every group loses channels, as "name" or "name:axis"; `keeps`:
    those that must not."""
    coupling = spa.analyze(model)
    rng = np.random.default_rng(seed)
    masks = few_ops.draw_masks(coupling, seed)
    for name in sorted(masks)[1:]:
        if not cuts and rng.random() < 0.3:
            masks[name][:] = False
    spare(coupling, masks)
    plan = from_masks(coupling, masks)
    slots = set(plan.removed) | {f"{n}:{a}" for n, axes in plan.removed.items() for a in axes}
    for name in cuts.split():
        assert name in slots, f"nothing was removed of {name}: {[str(b.reason) for b in coupling.blocked]}"
    for name in keeps.split():
        assert name not in slots, f"{name} was cut"
    cut = spa.apply(model, plan).model
    dense, small = model.to_proto(), cut.to_proto()
    feeds = few_ops.feed(dense, seed, given)
    found = runner(small, feeds)
    for value, b in zip(small.graph.output, found, strict=True):
        value.CopyFrom(helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, b.shape))
    if checked:
        onnx.checker.check_model(small, full_check=full_check)
    for a, b in zip(runner(masked(dense, plan.removed), feeds), found, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if a.dtype.kind == "f":
            np.testing.assert_allclose(b, a, rtol=1e-3, atol=atol * max(1.0, float(np.abs(a).max(initial=0))))
        else:
            np.testing.assert_array_equal(b, a)
    return cut, plan.removed


TAILS = ("weight", "sum", "mean", "square")


def head(
    shape: Sequence[int], axis: int, nonzero: bool, rng: np.random.Generator
) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """`a` of a shape whose `axis` is the output of weight `w0`: a product along the last axis, then a Transpose.

    `nonzero`: with a bias and a sigmoid, so that masking leaves 0.5 and not 0."""
    shape = [*shape]
    rank, n = len(shape), shape[axis]
    constants = {"w0": values(rng, 3, n)}
    nodes = [node("MatMul", "x w0", "head_product")]
    if nonzero:
        constants["b0"] = values(rng, n)
        nodes += [node("Add", "head_product b0", "head_sum"), node("Sigmoid", "head_sum", "head_squashed")]
    order = [i for i in range(rank) if i != axis]
    nodes.append(
        node(
            "Transpose", nodes[-1].output[0], "a", perm=[order.index(i) if i != axis else rank - 1 for i in range(rank)]
        )
    )
    return nodes, constants


def tail(
    z: str, shape: Sequence[int], axis: int, kind: str, rng: np.random.Generator, opset: int
) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """`y`, from z along `axis`: a weight forgets what masking leaves there, a sum or mean counts it."""
    if kind == "weight":
        perm = [*(i for i in range(len(shape)) if i != axis), axis]
        return [node("Transpose", z, "tail_in", perm=perm), node("MatMul", "tail_in w1", "y")], {
            "w1": values(rng, shape[axis], 2)
        }
    op = {"sum": "ReduceSum", "mean": "ReduceMean", "square": "ReduceSumSquare"}[kind]
    if opset < (13 if op == "ReduceSum" else 18):
        return [node(op, z, "y", keepdims=0, axes=[axis])], {}
    return [node(op, f"{z} tail_axes", "y", keepdims=0)], {"tail_axes": np.array([axis], np.int64)}


def values(rng: np.random.Generator, *shape: int) -> Array:
    return (0.5 * rng.standard_normal(shape)).astype(np.float32)


def sandwich(
    middle: Sequence[onnx.NodeProto],
    shape: Sequence[int],
    axis: int,
    out_shape: Sequence[int] | None = None,
    out_axis: int | None = None,
    *,
    kind: str = "weight",
    nonzero: bool = True,
    seed: int = 0,
    constants: Mapping[str, Array] | None = None,
    opset: int = 23,
    inputs: Mapping[str, Sequence[int]] | None = None,
    types: Mapping[str, int] | None = None,
) -> Model:
    """x -> w0 -> a (of `shape`, w0's channels along `axis`) -> middle -> z -> tail -> y."""
    rng = np.random.default_rng(seed)
    out_shape, out_axis = out_shape or shape, axis if out_axis is None else out_axis
    first, w0 = head(shape, axis, nonzero, rng)
    last, w1 = tail("z", out_shape, out_axis, kind, rng, opset)
    given = {"x": [n for i, n in enumerate(shape) if i != axis] + [3]} | dict(inputs or {})
    return few_ops.network(
        [*first, *middle, *last], given, ["y"], w0 | w1 | dict(constants or {}), opset=opset, types=types
    )


__all__ = ["TAILS", "check", "node", "onnxruntime", "reference", "sandwich", "values"]
