"""A whole network for a GPU computed by the emulator, launch by launch as the table has them; without nvcc or a driver."""

from __future__ import annotations

from collections.abc import Mapping

import emulator
import numpy as np
import onnx
from expressions import numpy_type
from machine import Array

from spa.codegen.converters import CONVERTERS
from spa.codegen.cuda.artifact import Gpu, lower_gpu, weights_blob
from spa.codegen.cuda.launch_table import Place
from spa.codegen.lower import _kernel_rows
from spa.codegen.prepare import prepare
from spa.codegen.target import cuda
from spa.codegen.tvm_api import imported_ops


def lowered(model: onnx.ModelProto, precision: str, archs: str = "sm_80") -> Gpu:
    prepared = prepare(model, {}, imported_ops() | frozenset(CONVERTERS))
    return lower_gpu(prepared, "net", cuda(archs, precision), _kernel_rows)


def simulated(gpu: Gpu, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs by name. Memory nobody has written holds 0xFF: NaN."""
    program = gpu.program
    inputs = [np.ascontiguousarray(feeds[t.name]).reshape(-1).view(np.uint8) for t in program.inputs]
    outputs = [np.full(t.nbytes, 0xFF, np.uint8) for t in program.outputs]
    weights = np.frombuffer(bytearray(weights_blob(gpu)), np.uint8)
    arena = np.full(gpu.layout.arena_bytes, 0xFF, np.uint8)

    def memory(place: Place) -> Array:
        if place.space in ("input", "output"):
            return (inputs if place.space == "input" else outputs)[place.at]
        return (weights if place.space == "weights" else arena)[place.at :]

    for entry in gpu.table.entries:
        launch = entry.launch
        function = gpu.device.functions[launch.symbol]
        arrays = []
        for place, parameter in zip(entry.arguments, function.params, strict=True):
            dtype = numpy_type(str(parameter.ty.element_type.dtype))[0]
            whole = memory(place)
            arrays.append(whole[: len(whole) // dtype.itemsize * dtype.itemsize].view(dtype))
        emulator.launch(function, arrays, launch.grid, launch.block, launch.shared)
    for place, output, size in gpu.table.copies:
        outputs[output][:size] = memory(place)[:size]
    named = zip(program.outputs, outputs, strict=True)
    return {t.name: data.view("bool" if t.dtype == "bool" else t.dtype).reshape(t.shape) for t, data in named}
