"""The way out of a product: bias, what follows the layer, and Y's place for (m, n)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spa.codegen.cuda.sources import Planes, Source
from spa.codegen.kernels.epilogue import Spot, evaluate
from spa.codegen.kernels.vector import Expr, argument, store
from spa.codegen.layer import Step
from spa.codegen.tvm_api import tirx


@dataclass(frozen=True)
class Ending:
    """What follows the sums of a layer: `bias` or none, `steps` with `vectors` channel vectors and tensor operands of
    `tensors` elements each, then Y in `dtype`."""

    bias: bool
    steps: tuple[Step, ...]
    vectors: int
    tensors: tuple[int, ...]
    dtype: str

    def operands(self) -> list[Any]:
        """The tensor operands: arguments behind x."""
        return [argument(f"t{i}", size, self.dtype) for i, size in enumerate(self.tensors)]


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
        )

    def finish(self, value: Expr, group: Expr, m: Expr, n: Expr) -> None:
        """`value` is the sum for row m of a group and column n."""
        total = self.groups * self.m
        channel = m if self.groups == 1 else group * self.m + m
        if isinstance(self.source, Planes):
            pixels = self.source.pixels
            picture, pixel = (0, n) if self.source.window.batch == 1 else (n // pixels, n % pixels)
            at = (picture * total + channel) * pixels + pixel
        else:
            at = n * total + channel
        spot = None if isinstance(self.source, Planes) else Spot(n, channel, total)
        if self.bias is not None:
            value = value + self.bias[channel]

        def vector(i: int) -> Expr:
            return self.vectors[i * total + channel]

        result = evaluate(self.steps, value, at, vector, self.tensors, 1, spot)
        dtype = str(self.y.dtype)
        store(self.y, result if dtype == "float32" else tirx.Cast(dtype, result), at, 1)
