"""The way out of a product: bias, what follows the layer, and Y's place for (m, n)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spa.codegen.cuda.sources import Planes, Source
from spa.codegen.kernels.epilogue import Spot, evaluate
from spa.codegen.kernels.vector import FLOAT, Expr, argument, store
from spa.codegen.layer import Step
from spa.codegen.tvm_api import tirx


@dataclass(frozen=True)
class Ending:
    """What follows the sums of a layer: `bias` or none, `steps` with `vectors` channel vectors and tensor operands of
    `tensors` elements each, of `types` (without: fp32), then Y in `dtype`. `strides`: where the axes of Y lie, if not one
    behind the other: (extent, stride) of the axes of a row number, outermost first, and of the channels; or of picture, channel, row, column."""

    bias: bool
    steps: tuple[Step, ...]
    vectors: int
    tensors: tuple[int, ...]
    dtype: str
    types: tuple[str, ...] = ()
    strides: tuple[tuple[int, int], ...] = ()

    def operands(self) -> list[Any]:
        """The tensor operands: arguments behind x."""
        types = self.types or (FLOAT,) * len(self.tensors)
        named = enumerate(zip(self.tensors, types, strict=True))
        return [_Widened(argument(f"t{i}", size, dtype)) for i, (size, dtype) in named]


@dataclass(frozen=True, eq=False)
class _Widened:
    """A buffer read as fp32, one element at a time."""

    buffer: Any

    def __getitem__(self, index: Any) -> Expr:
        value = self.buffer[index]
        return value if str(self.buffer.dtype) == FLOAT else tirx.Cast(FLOAT, value)


@dataclass(eq=False)
class Writer:
    """Bias and vectors are [groups * m]; Y is [n, groups * m] for rows, [picture, groups * m, pixel] for planes."""

    m: int
    groups: int
    source: Source
    steps: tuple[Step, ...]
    tensors: Sequence[Any]
    bias: Any
    vectors: Any
    y: Any
    strides: tuple[tuple[int, int], ...]

    @classmethod
    def declare(cls, m: int, groups: int, source: Source, ending: Ending, tensors: Sequence[Any]) -> Writer:
        """With the last arguments of a kernel: bias, vectors, y."""
        total = groups * m
        return cls(
            m=m,
            groups=groups,
            source=source,
            steps=ending.steps,
            tensors=tensors,
            bias=argument("bias", total) if ending.bias else None,
            vectors=argument("vectors", ending.vectors * total) if ending.vectors else None,
            y=argument("y", total * source.n, ending.dtype),
            strides=ending.strides,
        )

    def finish(self, value: Expr, group: Expr, m: Expr, n: Expr, place: Expr | None = None) -> None:
        """`value` is the sum for row m of a group and column n, and belongs to `place` of Y, if that is known."""
        result, there = self.result(value, group, m, n)
        dtype = str(self.y.dtype)
        store(self.y, result if dtype == FLOAT else tirx.Cast(dtype, result), there if place is None else place, 1)

    def result(self, value: Expr, group: Expr, m: Expr, n: Expr) -> tuple[Expr, Expr]:
        """What the layer gives there, in fp32, and its place in Y."""
        total = self.groups * self.m
        channel = m if self.groups == 1 else group * self.m + m
        if isinstance(self.source, Planes):
            pixels = self.source.pixels
            picture, pixel = (0, n) if self.source.window.batch == 1 else (n // pixels, n % pixels)
            at = (picture * total + channel) * pixels + pixel
            there = at if not self.strides else self._in_planes(picture, channel, pixel)
        else:
            at = n * total + channel
            there = at if not self.strides else _dot(n, self.strides[:-1]) + channel * self.strides[-1][1]
        spot = None if isinstance(self.source, Planes) else Spot(n, channel, total)
        if self.bias is not None:
            value = value + self.bias[channel]

        def vector(i: int) -> Expr:
            return self.vectors[i * total + channel]

        return evaluate(self.steps, value, at, vector, self.tensors, 1, spot), there

    def _in_planes(self, picture: Expr, channel: Expr, pixel: Expr) -> Expr:
        of_picture, of_channel, *of_pixel = self.strides
        return picture * of_picture[1] + channel * of_channel[1] + _dot(pixel, tuple(of_pixel))


def _dot(index: Expr, axes: tuple[tuple[int, int], ...]) -> Expr:
    """Where an element lies whose axes are merged into one index; (extent, stride), outermost first."""
    place: Expr = 0
    inner = 1  # elements from one index of the axis to the next
    for depth, (extent, stride) in enumerate(reversed(axes)):
        part = index if inner == 1 else index // inner
        place += (part if depth == len(axes) - 1 else part % extent) * stride
        inner *= extent
    return place
