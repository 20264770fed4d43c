"""The geometry of a convolution, and its input as a kernel wants to read it: padded, and split by stride.

With stride s, the pixels that one tap meets lie s apart. The input is therefore copied once into s x s planes per
channel (its phases): plane (p, q) holds the padded input's rows p, p + s, ... and columns q, q + s, ... In it every tap
is a fixed distance, and neighbouring outputs read neighbouring elements, whatever stride and dilation are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from spa.codegen.kernels.parallel import parallel
from spa.codegen.kernels.vector import covering, evens, fits, load, loop, number, shifted, store
from spa.codegen.layer import Layer


@dataclass(frozen=True)
class Window:
    """Sizes are (height, width); `pads` are those before. A one-dimensional convolution has height 1."""

    batch: int
    channels: int
    size: tuple[int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int]

    @property
    def dense(self) -> bool:
        """The input may be read as it lies: no stride, and what is read is all inside."""
        return self.strides == (1, 1) and all(
            o + (k - 1) * d <= n and p == 0
            for o, k, d, n, p in zip(self.out, self.kernel, self.dilations, self.size, self.pads, strict=True)
        )


def window_of(layer: Layer, kernel: tuple[int, ...]) -> Window | None:
    """The geometry of a Conv or a pooling, or None for what is neither one- nor two-dimensional."""
    x, y = layer.inputs[0], layer.output
    rank = len(kernel)
    if x is None or rank not in (1, 2) or len(x.shape) != rank + 2 or len(y.shape) != rank + 2:
        return None
    get: Mapping[str, Any] = layer.attributes
    strides, dilations = get.get("strides") or [1] * rank, get.get("dilations") or [1] * rank
    auto = get.get("auto_pad", b"NOTSET") or b"NOTSET"
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        total = [
            max((o - 1) * s + (k - 1) * d + 1 - n, 0)
            for o, s, k, d, n in zip(y.shape[2:], strides, kernel, dilations, x.shape[2:], strict=True)
        ]
        pads = [t // 2 if auto == b"SAME_UPPER" else t - t // 2 for t in total]
    else:
        pads = [0] * rank if auto == b"VALID" else list(get.get("pads") or [0] * 2 * rank)[:rank]
    if min([*pads, 0]) < 0:
        return None

    def pair(values: Any, one: int) -> tuple[int, int]:
        first, *rest = [int(v) for v in values]
        return (first, rest[0]) if rest else (one, first)

    return Window(
        batch=x.shape[0],
        channels=x.shape[1],
        size=pair(x.shape[2:], 1),
        out=pair(y.shape[2:], 1),
        kernel=pair(kernel, 1),
        strides=pair(strides, 1),
        dilations=pair(dilations, 1),
        pads=pair(pads, 0),
    )


@dataclass(frozen=True)
class Planes:
    """The phases of one channel, one behind the other: `phases` those that some tap meets, `rows` x `pitch` each."""

    phases: tuple[tuple[int, int], ...]
    rows: int
    pitch: int

    @property
    def channel(self) -> int:
        """Elements of one channel."""
        return len(self.phases) * self.rows * self.pitch


def unsplit(w: Window) -> Window:
    """The same window without its stride, for kernels that step over pixels themselves."""
    size = [(o - 1) * s + 1 for o, s in zip(w.out, w.strides, strict=True)]
    return replace(w, strides=(1, 1), out=(size[0], size[1]))


def planes_of(w: Window) -> Planes:
    if w.dense:
        return Planes(((0, 0),), w.size[0], w.size[1])
    taps = [(r * w.dilations[0], s * w.dilations[1]) for r in range(w.kernel[0]) for s in range(w.kernel[1])]
    phases = sorted({(r % w.strides[0], s % w.strides[1]) for r, s in taps})
    return Planes(
        tuple(phases),
        w.out[0] + max(r for r, _ in taps) // w.strides[0],
        w.out[1] + max(s for _, s in taps) // w.strides[1],
    )


def tap_offset(w: Window, planes: Planes, r: int, s: int) -> int:
    """How far behind an output pixel's place (row * pitch + column) its tap (r, s) lies, within a channel."""
    row, column = r * w.dilations[0], s * w.dilations[1]
    phase = planes.phases.index((row % w.strides[0], column % w.strides[1]))
    return (phase * planes.rows + row // w.strides[0]) * planes.pitch + column // w.strides[1]


@dataclass(frozen=True)
class Taps:
    """Taps in the order in which weights lie: `count` times those at `offsets`, `step` further each time."""

    count: int
    step: int
    offsets: tuple[int, ...]
    order: tuple[tuple[int, int], ...]  # (r, s) of each, as they come


UNROLLED = 9  # taps that the innermost loop of a kernel spells out


def taps_of(w: Window, planes: Planes, unrolled: int = UNROLLED) -> tuple[Taps, ...]:
    """All taps at once where they are few, one loop where each is one step behind the one before it (windows that do
    not overlap: each tap is a phase of its own), else a loop per phase of rows."""
    kh, kw = w.kernel
    order = tuple((r, s) for r in range(kh) for s in range(kw))
    offsets = tuple(tap_offset(w, planes, r, s) for r, s in order)
    if kh * kw <= unrolled:
        return (Taps(1, 0, offsets, order),)
    step = offsets[1] - offsets[0]
    if offsets == tuple(offsets[0] + i * step for i in range(len(offsets))):
        return (Taps(len(offsets), step, (offsets[0],), order),)
    stride = w.strides[0] // math.gcd(w.strides[0], w.dilations[0])  # rows of taps that share a phase
    groups = []
    for first in range(min(stride, kh)):
        rows = range(first, kh, stride)
        step = tap_offset(w, planes, rows[1], 0) - tap_offset(w, planes, rows[0], 0) if len(rows) > 1 else 0
        offsets = tuple(tap_offset(w, planes, first, s) for s in range(kw))
        groups.append(Taps(len(rows), step, offsets, tuple((r, s) for r in rows for s in range(kw))))
    return tuple(groups)


def stage(w: Window, planes: Planes, x: Any, at: Any, s: Any, channels: int, lanes: int) -> None:
    """Copy `channels` channels from x[at:] into their planes s, zeros where the padding is."""
    borders(w, planes, s, channels, lanes)
    interior(w, planes, x, at, s, channels, lanes)


def borders(w: Window, planes: Planes, s: Any, channels: int, lanes: int, value: float = 0) -> None:
    """Zeros, or another value, where the padding is."""
    for run in _runs(w, planes):
        rows, columns = run.rows, run.columns
        above, below = rows[0] * planes.pitch, (planes.rows - rows[1]) * planes.pitch
        if not (above or below or columns[0] or columns[1] < planes.pitch):
            continue
        with parallel(channels) as c, loop(run.counts[0]) as p, loop(run.counts[1]) as q:
            plane = c * planes.channel + (run.index + p * run.step + q) * (planes.rows * planes.pitch)
            _put(s, plane, above, lanes, value)
            if columns != (0, planes.pitch):
                with loop(rows[1] - rows[0]) as i:
                    row = plane + (i + rows[0]) * planes.pitch
                    _put(s, row, columns[0], lanes, value)
                    _put(s, row + columns[1], planes.pitch - columns[1], lanes, value)
            _put(s, plane + rows[1] * planes.pitch, below, lanes, value)


def interior(w: Window, planes: Planes, x: Any, at: Any, s: Any, channels: int, lanes: int) -> None:
    """What the picture has, into its phases."""
    for run in _runs(w, planes):
        rows, columns = run.rows, run.columns
        picture = w.size[0] * w.size[1]
        with parallel(channels) as c, loop(run.counts[0]) as p, loop(run.counts[1]) as q, loop(rows[1] - rows[0]) as i:
            source = at + c * picture + ((i + rows[0]) * w.strides[0] + run.first[0] + p - w.pads[0]) * w.size[1]
            source += columns[0] * w.strides[1] + run.first[1] + q - w.pads[1]
            plane = (run.index + p * run.step + q) * planes.rows
            to = c * planes.channel + (plane + i + rows[0]) * planes.pitch + columns[0]
            _copy(s, to, x, source, columns[1] - columns[0], w.strides[1], lanes)


@dataclass(frozen=True)
class _Run:
    """Phases (first[0] + i, first[1] + j), i and j below `counts`, in plane `index` + i * `step` + j, of which the same
    `rows` and `columns` lie in the picture."""

    first: tuple[int, int]
    counts: tuple[int, int]
    index: int
    step: int
    rows: tuple[int, int]
    columns: tuple[int, int]


FEW_PHASES = 4  # strides of two: each for itself


def _runs(w: Window, planes: Planes) -> list[_Run]:
    """The phases; neighbours are taken together where there are many, so that a stride of 16 is no 256 copies of code."""
    inner = {
        (p, q): (
            _inside(planes.rows, p - w.pads[0], w.strides[0], w.size[0]),
            _inside(planes.pitch, q - w.pads[1], w.strides[1], w.size[1]),
        )
        for p, q in planes.phases
    }
    ps, qs = sorted({p for p, _ in inner}), sorted({q for _, q in inner})
    if len(inner) <= FEW_PHASES or len(inner) < len(ps) * len(qs):
        return [_Run(phase, (1, 1), i, 0, *inner[phase]) for i, phase in enumerate(planes.phases)]
    rows, columns = [inner[p, qs[0]][0] for p in ps], [inner[ps[0], q][1] for q in qs]
    return [
        _Run((ps[i], qs[j]), (m, n), i * len(qs) + j, len(qs), rows[i], columns[j])
        for i, m in _neighbours(ps, rows)
        for j, n in _neighbours(qs, columns)
    ]


def _neighbours(values: list[int], ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """(position, count) of values that follow each other and share a range."""
    found: list[tuple[int, int]] = []
    for i, value in enumerate(values):
        begin, count = found[-1] if found else (0, 0)
        if count and value == values[i - 1] + 1 and ranges[i] == ranges[begin]:
            found[-1] = (begin, count + 1)
        else:
            found.append((i, 1))
    return found


def _inside(count: int, first: int, stride: int, size: int) -> tuple[int, int]:
    """Of positions first + i * stride, i < count: the range of i that lie in [0, size)."""
    begin = min(max(-(first // stride), 0), count)
    end = min(max(-(-(size - first) // stride), begin), count)
    return begin, end


def _put(s: Any, at: Any, length: int, lanes: int, value: float) -> None:
    if length == 0:
        return
    width = fits(lanes, length)
    with loop(covering(length, width)) as i:
        store(s, number(value, width), at + shifted(i, width, width, length), width)


def _copy(s: Any, to: Any, x: Any, at: Any, length: int, stride: int, lanes: int) -> None:
    if length == 0:
        return
    width = fits(lanes, length) if stride <= 2 else 1
    with loop(covering(length, width)) as i:
        j = shifted(i, width, width, length)
        value = load(x, at + j, width) if stride == 1 else evens(x, at + 2 * j, width) if stride == 2 else None
        store(s, x[at + j * stride] if value is None else value, to + j, width)
