"""A layer of a prepared network, and a kernel that computes it: plain data between the graph and the kernel families."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from spa.codegen.program import Tensor
from spa.codegen.target import Target
from spa.codegen.views import View

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Arg:
    """An operand of an epilogue step: `value` 0 is the layer's own result and `value` i that of step i, `channel` a row
    of `Layer.channels`, `tensor` an input of the layer with the shape of its output, `scalar` the number itself.
    A tensor that is broadcast has `axes`: (extent, stride) of the output's axes, outermost first, merged."""

    kind: Literal["value", "channel", "tensor", "scalar"]
    index: int = 0
    number: float = 0.0
    axes: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Step:
    """One element-wise operator applied to the layer's result; `op` is a key of `epilogue.OPS`."""

    op: str
    args: tuple[Arg, ...]


@dataclass(frozen=True, eq=False)
class Layer:
    """One operator with all that a kernel may want to know, and the element-wise operators that follow it.

    `consts` maps the position of an input to its value. `views` says how an input that is read through Transpose, Slice
    and the like lies in memory. `strides`, if any: where the axes of the result lie in the output, if a Transpose
    follows the last step. `channels` holds vectors of one number per channel of the
    output (axis 1 of a convolution, the last axis of a product). `output` is the last step's.
    """

    name: str
    op: str
    attributes: Mapping[str, Any]
    inputs: tuple[Tensor | None, ...]
    output: Tensor
    consts: Mapping[int, Array]
    epilogue: tuple[Step, ...] = ()
    channels: tuple[Array, ...] = ()
    views: Mapping[int, View] = field(default_factory=dict)
    strides: tuple[int, ...] = ()

    @property
    def operands(self) -> tuple[Tensor | None, ...]:
        """The operator's own inputs, without those that only the epilogue reads."""
        return self.inputs[: min(self.tensors, default=len(self.inputs))]

    @property
    def tensors(self) -> tuple[int, ...]:
        """Positions of the inputs that the epilogue reads, in the order it names them first."""
        return tuple(dict.fromkeys(a.index for s in self.epilogue for a in s.args if a.kind == "tensor"))

    def vectors(self, *own: Array | None) -> tuple[Array, ...]:
        """What a kernel reads behind its packed weights, float32: those of `own` (a bias, factors) that there are, then
        `channels` one behind the other."""
        given = [v for v in own if v is not None]
        given += [np.concatenate(self.channels)] if self.channels else []
        return tuple(np.ascontiguousarray(v, np.float32) for v in given)


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel for a layer. `activations`: positions of the layer's inputs it reads at run time; `weights`: packed
    constants that follow them; then the output. `in_place`: positions among the activations of those whose memory the
    output may take over: it reads each of their elements only before it writes the same one of the output. `build()`
    gives its PrimFunc over these buffers in this order. Kernels of one `key` have the same code; without a key it is this
    layer's own. `viewed`: it reads the sources of the layer's views instead of the inputs themselves."""

    family: str
    format: str
    tile: str
    why: str
    activations: tuple[int, ...]
    weights: tuple[Array, ...]
    build: Callable[[], Any] = field(repr=False)
    key: Hashable = None
    viewed: bool = False
    in_place: tuple[int, ...] = ()


Offer = Callable[[Layer, Target], Kernel | None]
