"""Depthwise convolutions: every output pixel a thread, its taps unrolled; as fast as the pictures come from memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spa.codegen.cuda.sources import Planes, bounds
from spa.codegen.cuda.words import axis, both, chosen, local, named, only, unrolled
from spa.codegen.cuda.writer import Ending, Writer
from spa.codegen.kernels.vector import FLOAT, argument, build, covering, function, product
from spa.codegen.tvm_api import tirx

THREADS = 256


@dataclass(frozen=True)
class Depthwise:
    """All that a kernel's code depends on: `m` outputs from each channel, which is a group of its own."""

    m: int
    source: Planes
    ending: Ending


def build_depthwise(p: Depthwise) -> Any:
    """The PrimFunc: x, tensor operands, then w [channels * m, taps] in fp32, bias, vectors, then y; all flat."""
    s, w = p.source, p.source.window
    total = s.groups * p.m
    outputs = w.batch * total * s.pixels
    taps = product(w.kernel)
    with function() as f:
        x = argument("x", s.size, s.dtype)
        tensors = p.ending.operands()
        weights = argument("w", total * taps)
        out = Writer.declare(p.m, s.groups, s, p.ending, tensors)
        with axis("blockIdx.x", covering(outputs, THREADS)) as block, axis("threadIdx.x", THREADS) as thread:
            at = named(block * THREADS + thread)
            with only(outputs % THREADS == 0 or at < outputs):
                pixel, channel = named(at % s.pixels), named(at // s.pixels % total)
                picture = named(at // (s.pixels * total))
                total_sum = local(1, FLOAT)
                build.buffer_store(total_sum, tirx.const(0.0, FLOAT), [0])
                base = named((picture * w.channels + channel // p.m) * product(w.size))
                top = named(pixel // w.out[1] * w.strides[0] - w.pads[0])
                left = named(pixel % w.out[1] * w.strides[1] - w.pads[1])
                with unrolled(w.kernel[0]) as r, unrolled(w.kernel[1]) as c:
                    row, column = top + r * w.dilations[0], left + c * w.dilations[1]
                    inside = both(*bounds(row, w, 0), *bounds(column, w, 1))
                    value = chosen(inside, x[base + row * w.size[1] + column], tirx.const(0.0, s.dtype))
                    weight = weights[channel * taps + r * w.kernel[1] + c]
                    build.buffer_store(total_sum, tirx.Cast(FLOAT, value) * weight + total_sum[0], [0])
                out.finish(total_sum[0], channel // p.m, channel % p.m, picture * s.pixels + pixel)
    return f.primfunc
