"""ConvTranspose as a convolution, so that the kernels for convolutions do it.

With stride s, output s q + f of an axis, before the pads are cut off, is sum over t of x[q - t] W[f + s t]: each phase f is a
convolution of x with every s-th tap, in reverse. All phases are channels of one convolution, whose kernel has ceil(k / s)
taps per axis (zeros where k is no multiple of s); its channels then move between the pixels (Shi et al., 2016, "Is the
deconvolution layer the same as a convolutional layer?", arXiv:1609.07009).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto

from spa.codegen.replacing import Builder, attributes, replaced

Array = np.ndarray[Any, Any]


def convolved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its transposed convolutions in these terms where they can be; changed in place."""
    return replaced(model, {"ConvTranspose": _replace})


@dataclass(frozen=True)
class _Axis:
    """`size` pixels become `out`, of which the first is pixel `skip` of `phases * stride`."""

    size: int
    kernel: int
    stride: int
    dilation: int
    begin: int  # of the pads that ONNX means: what is cut off
    out: int

    @property
    def taps(self) -> int:
        return -(-self.kernel // self.stride)

    @property
    def reach(self) -> int:
        """From the first tap to the last, in pixels of the input."""
        return (self.taps - 1) * self.dilation

    @property
    def pads(self) -> tuple[int, int]:
        """Of the convolution."""
        begin = self.reach - self.begin // self.stride
        return begin, self.phases - self.size - begin + self.reach

    @property
    def skip(self) -> int:
        return self.begin % self.stride

    @property
    def phases(self) -> int:
        """Pixels of the convolution's result."""
        return -(-(self.skip + self.out) // self.stride)


def _replace(node: NodeProto, build: Builder) -> bool:
    options = attributes(node)
    shape, weight = build.shape(node.input[0]), build.const(node.input[1])
    result = build.shape(node.output[0])
    named = node.input[2] if len(node.input) > 2 else ""
    bias = build.const(named) if named else None
    if shape is None or weight is None or result is None or bool(named) != (bias is not None):
        return False
    axes = _axes(options, shape[2:], weight.shape[2:], result[2:])
    if axes is None or any(a.stride > 1 and a.dilation > 1 for a in axes) or min(p for a in axes for p in a.pads) < 0:
        return False
    groups = options.get("group", 1)
    strides, phases = [a.stride for a in axes], [a.phases for a in axes]
    count = int(np.prod(strides))
    operands = [node.input[0], build.constant(_weight(weight, axes, groups))]
    operands += [build.constant(np.repeat(bias, count))] if bias is not None else []
    settings: dict[str, Any] = {
        "group": groups,
        "dilations": [a.dilation for a in axes],
        "pads": [p for side in zip(*(a.pads for a in axes), strict=True) for p in side],
    }
    if count == 1:
        build.name("Conv", operands, node.output[0], **settings)
        return True
    n, m, rank = result[0], result[1], len(axes)
    y = build.add("Conv", operands, (n, m * count, *phases), **settings)
    y = _reshaped(build, y, (n, m, *strides, *phases))
    y = build.add("Transpose", [y], perm=[0, 1, *(d for i in range(rank) for d in (2 + rank + i, 2 + i))])
    whole = (n, m, *(p * s for p, s in zip(phases, strides, strict=True)))
    if whole == tuple(result):
        build.name("Reshape", [y, build.constant(np.array(whole, np.int64))], node.output[0])
        return True
    y = _reshaped(build, y, whole)
    cuts = ([a.skip for a in axes], [a.skip + a.out for a in axes], range(2, 2 + rank))
    build.name("Slice", [y, *(build.constant(np.array(list(c), np.int64)) for c in cuts)], node.output[0])
    return True


def _reshaped(build: Builder, x: str, shape: tuple[int, ...]) -> str:
    return build.add("Reshape", [x, build.constant(np.array(shape, np.int64))], shape)


def _axes(options: dict[str, Any], sizes: Any, kernels: Any, outs: Any) -> list[_Axis] | None:
    """None where the pads are not those of the specification."""
    rank = len(sizes)
    strides, dilations = (options.get(name, [1] * rank) for name in ("strides", "dilations"))
    extra, given = options.get("output_padding", [0] * rank), options.get("pads", [0] * 2 * rank)
    auto = options.get("auto_pad", b"NOTSET").decode()
    found = []
    for i, (size, kernel, stride, dilation) in enumerate(zip(sizes, kernels, strides, dilations, strict=True)):
        total = stride * (size - 1) + extra[i] + (kernel - 1) * dilation + 1 - outs[i]
        if auto == "VALID" or (auto == "NOTSET" and "output_shape" not in options):
            begin = 0 if auto == "VALID" else given[i]
        else:  # what is cut off follows from the shape; the odd pixel goes to the end only where it says so
            begin = total // 2 if auto == "SAME_UPPER" else total - total // 2
        if begin < 0:
            return None
        found.append(_Axis(size, kernel, stride, dilation, begin, outs[i]))
    return found


def _weight(weight: Array, axes: list[_Axis], groups: int) -> Array:
    """Of the convolution [m * phases, c / groups, *taps], from ConvTranspose's [c, m / groups, *kernel]."""
    c, m = weight.shape[0], weight.shape[1] * groups
    grouped = weight.reshape(groups, c // groups, m // groups, *weight.shape[2:]).swapaxes(1, 2)
    outputs = grouped.reshape(m, c // groups, *weight.shape[2:])
    taps = [a.taps for a in axes]
    found = np.zeros((m, *(a.stride for a in axes), c // groups, *taps), weight.dtype)
    for phase in product(*(range(a.stride) for a in axes)):
        picked = outputs[
            (slice(None), slice(None), *(slice(f, None, a.stride) for f, a in zip(phase, axes, strict=True)))
        ]
        place: Any = (slice(None), *phase, slice(None), *(slice(n) for n in picked.shape[2:]))
        found[place] = picked
    reverse = (slice(None, None, -1),) * len(axes)
    return np.ascontiguousarray(found.reshape(-1, c // groups, *taps)[(slice(None), slice(None), *reverse)])
