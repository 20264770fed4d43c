"""Readers inside recurrent cells: of the input sequence through W, and of the previous hidden state through R."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spa.calibration.readers import Array, Matrix, Reader, Values, sample
from spa.coupling.axes import Op

if TYPE_CHECKING:
    from spa.calibration.walk import Walk

RECURRENT = ("LSTM", "GRU", "RNN")


class Recurrent(Reader):
    """W [directions, gates*H, I] or R [directions, gates*H, H]; a group per direction."""

    def matrix(self, weight: Array) -> Matrix:
        return weight.astype(np.float64)

    def tensor(self, matrix: Matrix, like: Array) -> Array:
        return np.asarray(matrix, like.dtype)

    def spread(self, channels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.broadcast_to(channels, (self.groups, self.features))

    def sequences(self, values: Values) -> Array:
        """[directions, steps, batch, features]"""
        raise NotImplementedError

    def unfold(self, values: Values, rng: np.random.Generator, rows: int) -> Array:
        x = self.sequences(values)
        x = x.reshape(len(x), -1, x.shape[-1])
        return x[:, sample(x.shape[1], rows, rng)]


class RecurrentInput(Recurrent):
    def sequences(self, values: Values) -> Array:
        x = values[self.x.name or ""]
        x = np.swapaxes(x, 0, 1) if self.op.attr("layout", 0) else x
        return np.broadcast_to(x, (self.groups, *x.shape))


class RecurrentState(Recurrent):
    """Reads what the cell itself gave a step before, so its inputs come from running the cell."""

    def observe(self, walk: Walk) -> Sequence[Values]:
        output = first_output(self.op)
        walk.advance(output)
        states = walk.probe(output, 0)
        initial = self.op.input(5)
        return [
            {"states": y} | ({"initial": walk.value(initial.name, v)} if initial is not None and initial.name else {})
            for y, v in zip(states, walk.live, strict=True)
        ]

    def sequences(self, values: Values) -> Array:
        return previous(self.op, values["states"], values.get("initial"))


def previous(op: Op, y: Array, initial: Array | None) -> Array:
    """The hidden state each step starts from, [directions, steps, batch, H], from the output Y and the initial state."""
    if op.attr("layout", 0):
        y = y.transpose(1, 2, 0, 3)  # [batch, steps, directions, H]
        initial = None if initial is None else initial.transpose(1, 0, 2)
    y = y.transpose(1, 0, 2, 3)  # [directions, steps, batch, H]
    first = np.zeros_like(y[:, :1]) if initial is None else initial[:, None].astype(y.dtype)
    before = np.empty_like(y)
    for d in range(len(y)):
        if d == 1 or op.attr("direction", "forward") in ("reverse", b"reverse"):
            before[d] = np.concatenate([y[d, 1:], first[d]])
        else:
            before[d] = np.concatenate([first[d], y[d, :-1]])
    return before


def first_output(op: Op) -> str:
    return next(v.name for v in op.outputs if v is not None and v.name)


def recurrent_readers(op: Op) -> list[Reader]:
    x, w, r = op.inputs[0], op.inputs[1], op.inputs[2]
    if x is None or w is None or r is None or len(op.shape(w)) != 3 or len(op.shape(r)) != 3:
        return []
    directions = op.shape(w)[0]
    return [RecurrentInput(op, x, w, 2, directions), RecurrentState(op, x, r, 2, directions)]
