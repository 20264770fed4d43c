"""Layers of small networks, and kernels for them run in the emulator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import emulator
import numpy as np
import onnx
import zoo
from expressions import numpy_type
from machine import Array

from spa.codegen.converters import CONVERTERS
from spa.codegen.cuda.families import candidates
from spa.codegen.cuda.families import matrix_of as matrix_of
from spa.codegen.cuda.words import OPERANDS
from spa.codegen.dispatch import dispatch
from spa.codegen.layer import Kernel, Layer
from spa.codegen.prepare import prepare
from spa.codegen.target import cuda
from spa.codegen.tvm_api import imported_ops
from spa.codegen.tvm_api.cuda import emit_cuda


def exact(random: np.random.Generator, shape: Any) -> Array:
    """Numbers that fp16 holds exactly, so that rounding operands changes nothing."""
    return (random.integers(-64, 65, shape) / 32).astype(np.float32)


def network(text: str, weights: Mapping[str, Array]) -> onnx.ModelProto:
    """A network with these weights; see `zoo.network`."""
    model = zoo.network(text)
    for tensor in list(model.graph.initializer):
        if tensor.name in weights:
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name], tensor.name))
    return model


def layer_of(model: onnx.ModelProto) -> Layer:
    """The first layer that kernels are asked for, with what follows it."""
    found: list[Layer] = []

    def keep(layer: Layer, target: Any) -> None:
        found.append(layer)

    dispatch(prepare(model, {}, imported_ops() | frozenset(CONVERTERS)), cuda(), [keep])
    return next(layer for layer in found if matrix_of(layer) is not None)


def all_candidates(layer: Layer, precision: str) -> list[Any]:
    from spa.codegen.cuda.cost import arch_of

    matrix = matrix_of(layer)
    assert matrix is not None
    return list(candidates(layer, matrix, arch_of("sm_80"), OPERANDS[precision]))


def emulate(kernel: Kernel, layer: Layer, feeds: Mapping[str, Array]) -> Array:
    """What the kernel computes for the layer."""
    device = emit_cuda({"k": kernel.build()}, {"k"}, "sm_80", {"k": "k"})
    output = np.full(layer.output.shape, np.nan, layer.output.dtype)
    inputs = [layer.inputs[i] for i in kernel.activations]
    arrays = [np.ascontiguousarray(feeds[t.name]) for t in inputs if t is not None] + [*kernel.weights, output]
    (launch,) = device.launches["k"]
    types = [parameter.ty.element_type.dtype for parameter in device.functions[launch.symbol].params]
    flat = [
        arrays[p.index].reshape(-1).view(numpy_type(str(t))[0]) for p, t in zip(launch.arguments, types, strict=True)
    ]
    assert device.scratch["k"] == 0
    emulator.launch(device.functions[launch.symbol], flat, launch.grid, launch.block, launch.shared)
    return output
