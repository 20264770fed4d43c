"""The seam for kernels of our own: a family offers, the layer runs on what it offered, the manifest says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zoo

from spa.codegen import dispatch, kernels, tvm_api
from spa.codegen.bundle import compile
from spa.codegen.layer import Kernel, Layer
from spa.codegen.prepare import prepare
from spa.codegen.target import Target, resolve

pytestmark = pytest.mark.codegen


def matmul_kernel(rows: int, depth: int, columns: int) -> Any:
    """Y[rows, columns] = X[rows, depth] W[columns, depth]: W packed by columns, so it can only be ours."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as build

    with IRBuilder() as builder, build.prim_func(s_tir=True):
        build.func_name("own")
        build.func_attr({"tirx.noalias": True})
        x = build.arg("x", build.Buffer((rows, depth), "float32"))
        w = build.arg("w", build.Buffer((columns, depth), "float32"))
        y = build.arg("y", build.Buffer((rows, columns), "float32"))
        with build.serial(0, rows) as i, build.serial(0, columns) as j:
            build.buffer_store(y, tvm_api.tirx.FloatImm("float32", 0.0), [i, j])
            with build.serial(0, depth) as k:
                build.buffer_store(y, y[i, j] + x[i, k] * w[j, k], [i, j])
    return builder.get()


def offer(layer: Layer, target: Target) -> Kernel | None:
    if layer.op != "MatMul" or layer.epilogue or 1 not in layer.consts or layer.inputs[0] is None:
        return None
    w = layer.consts[1]
    shape = (layer.inputs[0].shape[0], w.shape[0], w.shape[1])
    packed = np.ascontiguousarray(w.T)
    return Kernel("toy", "dense", "1x1", "a test", (0,), (packed,), lambda: matmul_kernel(*shape))


def test_nothing_offered_nothing_changed() -> None:
    model = prepare(zoo.network(zoo.CNN), {}, tvm_api.imported_ops())
    chosen = dispatch.dispatch(model, resolve("host"), [lambda layer, target: None])
    assert chosen.model == model and not chosen.kernels


def test_an_offer_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "FAMILIES", (offer,))
    model = zoo.network(
        """g (float[4,8] x) => (float[4,5] y) <float[8,6] w, float[6,5] v>
        { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }"""
    )
    bundle = compile(model, ["host", "wasm"], use_cache=False)
    values = zoo.feeds(model)
    for target in bundle.targets:
        rows = bundle.manifest["targets"][target]["kernels"]
        assert [row["family"] for row in rows] == ["toy", "tvm", "toy"]
        assert rows[0]["why"] == "a test"
        zoo.assert_same(bundle.run(values, target), zoo.reference(model, values))


def test_a_layer_tells_what_a_kernel_needs() -> None:
    seen: list[Layer] = []

    def look(layer: Layer, target: Target) -> None:
        seen.append(layer)

    dispatch.dispatch(prepare(zoo.network(zoo.CNN), {}, tvm_api.imported_ops()), resolve("arm"), [look])
    first = next(layer for layer in seen if layer.op == "Conv")
    assert first.attributes["strides"] == [2, 2]
    assert first.output.shape == (1, 8, 8, 8)
    assert first.consts[1].shape == (8, 3, 3, 3) and 0 not in first.consts
