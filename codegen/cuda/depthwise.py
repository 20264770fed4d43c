"""Depthwise convolutions: every output pixel of a channel a thread, its taps unrolled; as fast as the pictures come from
memory. In NHWC a thread computes neighbouring channels of a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spa.codegen.cuda.moving import bounds
from spa.codegen.cuda.sources import Planes, Windows
from spa.codegen.cuda.words import axis, both, chosen, local, named, only, unrolled
from spa.codegen.cuda.writer import Ending, Writer
from spa.codegen.kernels.vector import FLOAT, Expr, argument, build, covering, fits, function, load, product
from spa.codegen.layer import Array
from spa.codegen.tvm_api import tirx

THREADS = 256
LANES = 4  # channels of a thread in NHWC


@dataclass(frozen=True)
class Depthwise:
    """All that a kernel's code depends on: `m` outputs from each channel, which is a group of its own."""

    m: int
    source: Planes | Windows
    ending: Ending


def pack(w: Array, source: Planes | Windows) -> Array:
    """W [channels, m, taps] in fp32; in NHWC the taps first."""
    flat = w.reshape(-1, w.shape[-1])
    return np.ascontiguousarray(flat.T if isinstance(source, Windows) else flat, np.float32).reshape(-1)


def build_depthwise(p: Depthwise) -> Any:
    """The PrimFunc: x, tensor operands, then w, bias, vectors, then y; all flat."""
    s = p.source
    total = s.groups * p.m
    with function() as f:
        x = argument("x", s.size, s.dtype)
        tensors = p.ending.operands()
        weights = argument("w", total * product(s.window.kernel))
        out = Writer.declare(p.m, s.groups, s, p.ending, tensors)
        lanes = fits(LANES, total) if isinstance(s, Windows) and p.m == 1 else 1
        outputs = s.n * total // lanes
        with axis("blockIdx.x", covering(outputs, THREADS)) as block, axis("threadIdx.x", THREADS) as thread:
            at = named(block * THREADS + thread)
            with only(outputs % THREADS == 0 or at < outputs):
                if isinstance(s, Windows):
                    _channels(p, s, lanes, at, x, weights, out)
                else:
                    _pixel(p, s, at, x, weights, out)
    return f.primfunc


def _pixel(p: Depthwise, s: Planes, at: Expr, x: Any, weights: Any, out: Writer) -> None:
    w, total = s.window, s.groups * p.m
    taps = product(w.kernel)
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


def _channels(p: Depthwise, s: Windows, lanes: int, at: Expr, x: Any, weights: Any, out: Writer) -> None:
    w, total = s.window, s.groups * p.m
    first = named(at % (total // lanes) * lanes)
    n = named(at // (total // lanes))
    pixel, picture = named(n % s.pixels), named(n // s.pixels)
    top = named(pixel // w.out[1] * w.strides[0] - w.pads[0])
    left = named(pixel % w.out[1] * w.strides[1] - w.pads[1])
    sums, values, factors = local(lanes, FLOAT), local(lanes, s.dtype), local(lanes, FLOAT)
    span = [tirx.Ramp(0, 1, lanes)] if lanes > 1 else [0]
    with unrolled(lanes) as j:
        build.buffer_store(sums, tirx.const(0.0, FLOAT), [j])
    with unrolled(w.kernel[0]) as r, unrolled(w.kernel[1]) as c:
        row, column = top + r * w.dilations[0], left + c * w.dilations[1]
        with only(both(*bounds(row, w, 0), *bounds(column, w, 1))):
            source = ((picture * w.size[0] + row) * w.size[1] + column) * w.channels + first // p.m
            build.buffer_store(values, load(x, source, lanes), span)
            build.buffer_store(factors, load(weights, (r * w.kernel[1] + c) * total + first, lanes), span)
            with unrolled(lanes) as j:
                build.buffer_store(sums, tirx.Cast(FLOAT, values[j]) * factors[j] + sums[j], [j])
    with unrolled(lanes) as j:
        out.finish(sums[j], (first + j) // p.m, (first + j) % p.m, n)
