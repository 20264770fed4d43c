"""The axis graph: which index of which axis of which value must live or die with which other.

A *slot* is one axis of one value, `(value, axis)`, or a virtual axis `(key, None)` that a rule invents (the factor of
a reshaped axis, the groups of a convolution). Rules, one per operator, state relations between slots:

same     index i of one is index i of the other
link     index `i[k]` of one is index `j[k]` of the other (offsets, permutations, gathers)
factor   one slot is the product of several: removing index i of a factor removes all of its fibre in the product
freeze   some or all indices must stay, with a reason

Slots of size 1 carry no information and are left out: what would tie an index to one freezes it instead.

Besides, a slot knows whether masking makes it zero: a removed index is exact without further ado where its constants,
set to zero, make the value zero there (`zero`), or where every consumer forgets it (a contraction with constants).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spa.shapes import Shapes

Index = npt.NDArray[np.int64]
Slot = tuple[Hashable, int | None]  # (ir.Value, axis), or (any key, None) for a virtual axis


@dataclass(frozen=True)
class Reason:
    """Why an index must stay."""

    text: str
    node: str
    op: str
    axis: int | None = None
    approximate: bool = False  # could be removed at the price of exactness

    def __str__(self) -> str:
        return f"{self.text} (node '{self.node}', {self.op})" if self.op else self.text


@dataclass(eq=False)
class Op:
    """One node as rules see it: operands by position, attributes with defaults, concrete shapes, known contents."""

    node: ir.Node
    shapes: Shapes
    opset: int
    inputs: tuple[ir.Value | None, ...] = ()  # as analysed: repair may connect others

    def __post_init__(self) -> None:
        self.inputs = tuple(self.node.inputs)

    @property
    def kind(self) -> str:
        return self.node.op_type

    @property
    def outputs(self) -> Sequence[ir.Value]:
        return self.node.outputs

    @property
    def out(self) -> ir.Value:
        return self.node.outputs[0]

    def input(self, i: int) -> ir.Value | None:
        return self.inputs[i] if i < len(self.inputs) else None

    def attr(self, name: str, default: Any = None) -> Any:
        a = self.node.attributes.get(name)
        return default if a is None else a.value

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """Concrete sizes. The driver never calls a rule while one of its tensors has no shape."""
        shape = None if value is None else self.shapes.shape.get(value)
        return shape if shape is not None else ()

    def known(self, i: int) -> npt.NDArray[Any] | None:
        """The static content of input i, where it has one."""
        return self.shapes.static(self.input(i))

    def axes(self, i: int, default: Sequence[int] | None = None, attr: str = "axes") -> list[int] | None:
        """Axes given as an attribute (old opsets) or as input i (new ones); None where they depend on data."""
        if attr in self.node.attributes:
            given = self.attr(attr)
            return [int(a) for a in (given if isinstance(given, Iterable) else [given])]
        if self.input(i) is None:
            return None if default is None else list(default)
        known = self.known(i)
        return None if known is None else [int(a) for a in known.reshape(-1)]


@dataclass
class Factor:
    """`merged` = product of `parts`; part t of index e is `e // stride[t] % size[t]`."""

    merged: Slot
    parts: list[tuple[Slot, int, int]]  # (slot, stride, size), outermost first


@dataclass
class Axes:
    """What the rules said."""

    shapes: Shapes
    allow_approximate: bool = False
    size: dict[Slot, int] = field(default_factory=dict)
    sames: list[tuple[Slot, Slot, ir.Node | None]] = field(default_factory=list)
    links: list[tuple[Slot, Slot, Index, Index, ir.Node | None]] = field(default_factory=list)
    factors: list[Factor] = field(default_factory=list)
    frozen: dict[Slot, list[tuple[Index | None, Reason]]] = field(default_factory=dict)
    nonzero: set[Slot] = field(default_factory=set)
    approximate: dict[Slot, list[Reason]] = field(default_factory=dict)
    kernel: set[Slot] = field(default_factory=set)  # taps of a window: axes of a weight that are no channels
    op: Op | None = None  # whose rule is speaking

    def add(self, slot: Slot) -> int:
        """The size of a slot (of a value's axis: read from its shape)."""
        n = self.size.get(slot)
        if n is None:
            value, axis = slot
            shape = self.shapes.shape.get(value) if isinstance(value, ir.Value) else None
            n = shape[axis] if shape is not None and axis is not None and axis < len(shape) else 1
            self.size[slot] = n
        return n

    def virtual(self, key: Hashable, size: int) -> Slot:
        slot: Slot = ((id(self.op.node) if self.op else None, key), None)
        self.size[slot] = size
        return slot

    def same(self, a: Slot, b: Slot) -> None:
        m, n = self.add(a), self.add(b)
        if m == n:
            if m > 1:
                self.sames.append((a, b, self.op.node if self.op else None))
        elif m > 1 and n > 1:
            self.freeze(a, f"sizes {m} and {n} do not correspond")
            self.freeze(b, f"sizes {m} and {n} do not correspond")

    def link(self, a: Slot, b: Slot, i: Index, j: Index) -> None:
        """a's index i[k] is b's index j[k]."""
        m, n = self.add(a), self.add(b)
        if m == n and len(i) == n and np.array_equal(i, j) and np.array_equal(i, np.arange(n)):
            self.same(a, b)
        elif m > 1 and n > 1:
            self.links.append(
                (a, b, np.asarray(i, np.int64), np.asarray(j, np.int64), self.op.node if self.op else None)
            )
        elif m > 1:
            self.freeze(a, "this index alone is taken", i)
        elif n > 1:
            self.freeze(b, "this index stands alone in its tensor", j)

    def factor(self, merged: Slot, parts: Sequence[tuple[Slot, int]]) -> None:
        """merged = product of parts (slot, size), outermost first; parts of size 1 are dropped."""
        real = [(s, n) for s, n in parts if n > 1]
        if len(real) == 1:
            self.same(merged, real[0][0])
        elif real:
            self.add(merged)
            placed, stride = [], 1
            for slot, n in reversed(real):
                self.add(slot)
                placed.append((slot, stride, n))
                stride *= n
            self.factors.append(Factor(merged, placed[::-1]))

    def freeze(self, slot: Slot, text: str, index: Index | None = None, *, approximate: bool = False) -> None:
        """Keep all indices of a slot, or those in `index`. `approximate`: only for the sake of exactness."""
        if self.add(slot) <= 1 or (index is not None and not len(index)):
            return
        node = self.op.node if self.op else None
        name, kind = (
            (node.name or (node.outputs[0].name if node.outputs else "") or "", node.op_type) if node else ("", "")
        )
        reason = Reason(text, name, kind, slot[1], approximate)
        if approximate and self.allow_approximate:
            self.approximate.setdefault(slot, []).append(reason)
            return
        self.frozen.setdefault(slot, []).append((index, reason))

    def freeze_all(self, value: ir.Value | None, text: str) -> None:
        for axis in range(len(self.shapes.shape.get(value) or ())) if value is not None else ():
            self.freeze((value, axis), text)

    def zero(self, slot: Slot) -> bool:
        """Is the value zero at a masked index of this slot?"""
        return slot not in self.nonzero

    def mark(self, slot: Slot, zero: bool) -> None:
        if not zero:
            self.nonzero.add(slot)

    def need_zero(self, slot: Slot, text: str) -> None:
        """This op would see what a masked index still holds."""
        if not self.zero(slot):
            self.freeze(slot, text, approximate=True)
