"""The part of LSTM, GRU and RNN that goes step by step (see `codegen/recurrent.py`): gates of a step in vector lanes.

Every step multiplies the state with R [hidden, gates * hidden] as it lies packed, a tile of rows of the batch x vectors of
gates in registers, then does what is element by element. Directions are independent: threads share them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from spa.codegen.kernels.epilogue import OPS
from spa.codegen.kernels.isa import isa_of
from spa.codegen.kernels.parallel import parallel
from spa.codegen.kernels.tile import Columns, columns_of
from spa.codegen.kernels.vector import (
    Expr,
    argument,
    covering,
    function,
    load,
    loop,
    number,
    put,
    registers,
    scratch,
    shifted,
    splat,
    store,
)
from spa.codegen.layer import Kernel, Layer
from spa.codegen.target import Target
from spa.codegen.tvm_api import tirx

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
WIDEST = 8  # vectors of a tile
OPERANDS = {"HardSigmoid": 2, "LeakyRelu": 1, "Elu": 1}  # numbers that an activation takes


@dataclass(frozen=True)
class Group:
    """Rows of the batch whose sequences are equally long."""

    first: int
    count: int
    steps: int


@dataclass(frozen=True)
class Recurrent:
    """All that a kernel's code depends on. `backward`: of each direction; `initial`: which of h and c are given;
    `columns`: the vectors of one gate; `linear`: GRU's linear_before_reset; `rows`: of a tile, no more than a group has."""

    kind: str
    steps: int
    batch: int
    groups: tuple[Group, ...]
    hidden: int
    backward: tuple[bool, ...]
    initial: tuple[bool, bool]
    inner: bool
    peepholes: bool
    linear: bool
    activations: tuple[tuple[str, tuple[float, ...]], ...]
    rows: int
    columns: Columns

    @property
    def gates(self) -> int:
        return GATES[self.kind]

    @property
    def width(self) -> int:
        """Gates of a row of the batch in one direction."""
        return self.gates * self.hidden


def offer(layer: Layer, target: Target) -> Kernel | None:
    """Recurrent, float32."""
    if layer.op != "Recurrent" or layer.output.dtype != "float32" or layer.epilogue:
        return None
    get, isa = layer.attributes, isa_of(target)
    steps, directions, batch, hidden = layer.output.shape
    names = [name.decode() for name in get["activations"]]
    numbers = [tuple(get["numbers"][2 * i : 2 * i + 2][: OPERANDS.get(n, 0)]) for i, n in enumerate(names)]
    lengths = [steps - 2] * batch if 6 not in layer.consts else [int(n) for n in layer.consts[6]]
    groups = _groups(lengths)
    rows = min(4, *[g.count for g in groups], batch)
    weights = [np.transpose(layer.consts[1], (0, 2, 1)).reshape(-1)]
    weights += [layer.consts[i].reshape(-1) for i in (4, 5) if i in layer.consts]
    p = Recurrent(
        kind=get["kind"].decode(),
        steps=steps - 2,
        batch=batch,
        groups=groups,
        hidden=hidden,
        backward=tuple(bool(b) for b in get["backward"]),
        initial=(layer.inputs[2] is not None, layer.inputs[3] is not None),
        inner=4 in layer.consts,
        peepholes=5 in layer.consts,
        linear=bool(get["linear_before_reset"]),
        activations=tuple(zip(names, numbers, strict=True)),
        rows=rows,
        columns=columns_of(isa, hidden, max(1, min(WIDEST, isa.registers // 2 // rows))),
    )
    return Kernel(
        family="recurrent",
        format="dense",
        tile=f"{rows}x{p.columns.widest * p.columns.lanes}-{isa.name}",
        why=f"{p.steps} steps of {p.kind}, {directions} directions",
        activations=(0, *[i for i in (2, 3) if layer.inputs[i] is not None]),
        weights=tuple(np.ascontiguousarray(w, np.float32) for w in weights),
        build=partial(build_recurrent, p),
        key=p,
    )


def _groups(lengths: list[int]) -> tuple[Group, ...]:
    """Neighbours of one length together.

    >>> _groups([5, 5, 3])
    (Group(first=0, count=2, steps=5), Group(first=2, count=1, steps=3))
    """
    starts = [i for i, n in enumerate(lengths) if i == 0 or n != lengths[i - 1]]
    return tuple(Group(i, j - i, lengths[i]) for i, j in zip(starts, [*starts[1:], len(lengths)], strict=True))


def build_recurrent(p: Recurrent) -> Any:
    """The PrimFunc: gates, initial states, then R, inner biases, peepholes, then y; all flat."""
    with function() as f:
        _Writer(p).write()
    return f.primfunc


class _Writer:
    def __init__(self, p: Recurrent) -> None:
        self.p, self.lanes = p, math.gcd(p.columns.full, p.hidden)  # every element once: states are read and written
        self.directions = len(p.backward)
        self.state = p.batch * p.hidden
        self.x = argument("x", p.steps * p.batch * self.directions * p.width)
        self.first = [
            argument(n, self.directions * self.state) if g else None for n, g in zip("hc", p.initial, strict=True)
        ]
        self.r = argument("r", self.directions * p.hidden * p.width)
        self.inner = argument("inner", self.directions * p.hidden) if p.inner else None
        self.peepholes = argument("peepholes", self.directions * 3 * p.hidden) if p.peepholes else None
        self.y = argument("y", (p.steps + 2) * self.directions * self.state)

    def write(self) -> None:
        p = self.p
        with parallel(self.directions) as d:
            h, c = scratch(self.state), scratch(self.state if p.kind == "LSTM" else 1)
            gates = scratch(p.batch * p.width)
            kept = scratch(self.state) if p.kind == "GRU" and not p.linear else None
            everyone = Group(0, p.batch, p.steps)
            for state, first in zip((h, c)[: 2 if p.kind == "LSTM" else 1], self.first, strict=False):
                self._each(everyone, partial(self._start, state, first, d))
            for group in p.groups:
                with loop(group.steps) as step:
                    t = self._time(d, step, group)
                    if p.kind == "GRU":
                        self._gru(group, d, t, h, gates, kept)
                    else:
                        self._multiply(group, d, t, h, gates, range(p.gates))
                        self._finish(group, d, h, c, gates)
                    self._each(group, partial(self._out, t, d, h))
                if group.steps < p.steps:
                    with loop(p.steps - group.steps, group.steps) as t:
                        self._each(group, partial(self._out, t, d, None))
            self._each(everyone, partial(self._out, p.steps, d, h))
            self._each(everyone, partial(self._out, p.steps + 1, d, c if p.kind == "LSTM" else None))

    def _time(self, d: Expr, step: Expr, group: Group) -> Expr:
        p = self.p
        if len(set(p.backward)) == 1:
            return group.steps - 1 - step if p.backward[0] else step
        return tirx.Select(d == int(p.backward[1]), group.steps - 1 - step, step)

    def _each(self, group: Group, body: Callable[[Expr], None]) -> None:
        """body(where) for each vector of a group's states."""
        with loop(group.count * self.p.hidden // self.lanes) as i:
            body(group.first * self.p.hidden + i * self.lanes)

    def _start(self, state: Any, first: Any, d: Expr, at: Expr) -> None:
        value = number(0, self.lanes) if first is None else load(first, d * self.state + at, self.lanes)
        store(state, value, at, self.lanes)

    def _out(self, row: Expr, d: Expr, state: Any, at: Expr) -> None:
        value = number(0, self.lanes) if state is None else load(state, at, self.lanes)
        store(self.y, value, (row * self.directions + d) * self.state + at, self.lanes)

    def _multiply(self, group: Group, d: Expr, t: Expr, h: Any, gates: Any, which: range, x: bool = True) -> None:
        """gates[b] = x[t, b] + h[b] R for the gates of `which`; without `x`: the product alone."""
        p, lanes = self.p, self.p.columns.lanes
        with loop(covering(group.count, p.rows)) as i, loop(len(which)) as g:
            row, begin = group.first + shifted(i, p.rows, p.rows, group.count), (which[0] + g) * p.hidden
            for width, starts in p.columns.walk():
                with starts as (at, _):
                    tile = registers(p.rows, width, lanes)
                    for b, line in enumerate(tile):
                        for v, register in enumerate(line):
                            place = ((t * p.batch + row + b) * self.directions + d) * p.width + begin + at[v]
                            put(register, load(self.x, place, lanes) if x else number(0, lanes))
                    with loop(p.hidden) as k:
                        weights = [load(self.r, (d * p.hidden + k) * p.width + begin + a, lanes) for a in at]
                        for b, line in enumerate(tile):
                            value = splat(h[(row + b) * p.hidden + k], lanes)
                            for weight, register in zip(weights, line, strict=True):
                                put(register, value * weight + register[0])
                    for b, line in enumerate(tile):
                        for v, register in enumerate(line):
                            store(gates, register[0], (row + b) * p.width + begin + at[v], lanes)

    def _act(self, which: int, value: Expr) -> Expr:
        name, numbers = self.p.activations[which]
        return OPS[name](value, *[number(n, self.lanes) for n in numbers], lanes=self.lanes)

    def _finish(self, group: Group, d: Expr, h: Any, c: Any, gates: Any) -> None:
        """LSTM: c = f c + i g, h = o act(c); RNN: h = act(gate)."""
        p, lanes = self.p, self.lanes
        with loop(group.count, group.first) as b, loop(p.hidden // lanes) as i:
            at = i * lanes

            def gate(g: int, b: Expr = b, at: Expr = at) -> Expr:
                return load(gates, b * p.width + g * p.hidden + at, lanes)

            if p.kind == "RNN":
                store(h, self._act(0, gate(0)), b * p.hidden + at, lanes)
            else:
                place = b * p.hidden + at
                old = load(c, place, lanes)
                enters = self._act(0, gate(0) + self._peep(d, 0, old, at)) * self._act(1, gate(3))
                stays = self._act(0, gate(2) + self._peep(d, 2, old, at)) * old
                store(c, stays + enters, place, lanes)
                new = load(c, place, lanes)
                out = self._act(0, gate(1) + self._peep(d, 1, new, at))
                store(h, out * self._act(2, new), place, lanes)

    def _peep(self, d: Expr, which: int, cell: Expr, at: Expr) -> Expr:
        if self.peepholes is None:
            return number(0, self.lanes)
        return load(self.peepholes, (d * 3 + which) * self.p.hidden + at, self.lanes) * cell

    def _gru(self, group: Group, d: Expr, t: Expr, h: Any, gates: Any, kept: Any) -> None:
        """z, r, candidate n; h = (1 - z) n + z h."""
        p, lanes = self.p, self.lanes
        self._multiply(group, d, t, h, gates, range(2))
        if p.linear:
            self._multiply(group, d, t, h, gates, range(2, 3), x=False)
        else:
            with loop(group.count, group.first) as b, loop(p.hidden // lanes) as i:
                at = i * lanes
                reset = self._act(0, load(gates, b * p.width + p.hidden + at, lanes))
                store(kept, reset * load(h, b * p.hidden + at, lanes), b * p.hidden + at, lanes)
            self._multiply(group, d, t, kept, gates, range(2, 3))
        with loop(group.count, group.first) as b, loop(p.hidden // lanes) as i:
            at = i * lanes
            candidate = load(gates, b * p.width + 2 * p.hidden + at, lanes)
            if p.linear:
                if self.inner is not None:
                    candidate = candidate + load(self.inner, d * p.hidden + at, lanes)
                reset = self._act(0, load(gates, b * p.width + p.hidden + at, lanes))
                place = ((t * p.batch + b) * self.directions + d) * p.width + 2 * p.hidden + at
                candidate = load(self.x, place, lanes) + reset * candidate
            slot = b * p.width + 2 * p.hidden + at
            store(gates, self._act(1, candidate), slot, lanes)
            fresh, old = load(gates, slot, lanes), load(h, b * p.hidden + at, lanes)
            keeps = self._act(0, load(gates, b * p.width + at, lanes))
            store(h, fresh + keeps * (old - fresh), b * p.hidden + at, lanes)
