"""Statistics of what a network's weights read: second moments of inputs, gathered batch by batch in bounded memory.

A *reader* is a contraction with a constant weight (Conv, Gemm, MatMul). Its input is unfolded into feature vectors x,
one per output position, so that the output is W x + b. Gathered are the mean of x and its covariance, in float64, over
calibration inputs; convolutions with many positions are sampled, with a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from spa.coupling.axes import Op
from spa.errors import UsageError
from spa.inputs import Feeds
from spa.shapes import infer, tensor_of

if TYPE_CHECKING:
    import onnxruntime as ort

    from spa.coupling import Coupling
    from spa.model import Model

Array = npt.NDArray[Any]
Matrix = npt.NDArray[np.float64]

MAX_FEATURES = 6144  # wider inputs are not gathered: their moments would not fit
ROWS = 24  # sampled rows per feature, at least
HELD = 4  # every fourth input is held back, to judge damping on what was not fitted


@dataclass(eq=False)
class Reader:
    """`weight` of `op` read as a matrix [outputs, features], per group of a grouped convolution.

    `labels(dim labels)` spreads labels of the contracted axis over features."""

    op: Op
    x: ir.Value
    weight: ir.Value
    axis: int  # of the weight: the contracted one
    groups: int = 1

    @property
    def name(self) -> str:
        return self.op.node.name or self.op.out.name or ""

    @property
    def taps(self) -> int:
        """Features per channel of the contracted axis."""
        return math.prod(self.op.shape(self.weight)[2:]) if self.op.kind == "Conv" else 1

    @property
    def features(self) -> int:
        return self.op.shape(self.weight)[self.axis] * self.taps

    def matrix(self, weight: Array) -> Matrix:
        """[groups, outputs per group, features]"""
        w = weight.astype(np.float64)
        if self.op.kind == "Conv":
            return w.reshape(self.groups, w.shape[0] // self.groups, -1)
        return (w if self.axis == 1 else w.T)[None]

    def tensor(self, matrix: Matrix, like: Array) -> Array:
        """The inverse of `matrix`."""
        if self.op.kind == "Conv":
            return np.asarray(matrix.reshape(like.shape), like.dtype)
        return np.asarray(matrix[0] if self.axis == 1 else matrix[0].T, like.dtype)

    def unfold(self, x: Array, rng: np.random.Generator, rows: int) -> list[Array]:
        """Per group: feature vectors [rows, features], at most about `rows` of them."""
        if self.op.kind != "Conv":
            if self.op.kind == "Gemm" and self.op.attr("transA", 0):
                x = x.T
            flat = x.reshape(-1, x.shape[-1])
            return [flat if len(flat) <= rows else flat[rng.choice(len(flat), rows, replace=False)]]
        return unfold_conv(self.op, x, self.groups, rng, rows)


def unfold_conv(op: Op, x: Array, groups: int, rng: np.random.Generator, rows: int) -> list[Array]:
    """x [N, C, ...] -> per group [rows, C/groups * taps], features in the order of the weight (channel, then tap)."""
    kernel = op.shape(op.inputs[1])[2:]
    rank = len(kernel)
    strides = op.attr("strides") or [1] * rank
    dilations = op.attr("dilations") or [1] * rank
    out = op.shape(op.out)[2:]
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = list(op.attr("pads") or [0] * 2 * rank)
    mode = op.attr("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER", b"SAME_UPPER", b"SAME_LOWER"):
        total = [max(0, (o - 1) * s + p - n) for o, s, p, n in zip(out, strides, spans, x.shape[2:], strict=True)]
        low = [t // 2 if "UPPER" in str(mode) else t - t // 2 for t in total]
        pads = [*low, *(t - lo for t, lo in zip(total, low, strict=True))]
    x = np.pad(x, [(0, 0), (0, 0), *((pads[i], pads[rank + i]) for i in range(rank))])
    counts = [(n - p) // s + 1 for n, p, s in zip(x.shape[2:], spans, strides, strict=True)]
    positions = math.prod(counts)
    per_input = max(1, math.ceil(rows / len(x)))
    picked = (
        np.arange(positions) if positions <= per_input else np.sort(rng.choice(positions, per_input, replace=False))
    )
    where = np.unravel_index(picked, counts)
    taps = np.unravel_index(np.arange(math.prod(kernel)), kernel)
    index = tuple(w[:, None] * s + t[None, :] * d for w, s, t, d in zip(where, strides, taps, dilations, strict=True))
    patches = x[(slice(None), slice(None), *index)]  # [N, C, positions, taps]
    patches = patches.transpose(0, 2, 1, 3)
    n, p, c, _ = patches.shape
    return [patches[:, :, g * c // groups : (g + 1) * c // groups].reshape(n * p, -1) for g in range(groups)]


def readers(coupling: Coupling) -> list[Reader]:
    """All contractions with a constant floating-point weight whose contracted axis a group runs through."""
    live = {d for g in coupling.groups for d in g.labels}
    found = []
    for op in coupling.ops:
        reader = as_reader(op)
        if reader is None or reader.weight not in coupling.constants:
            continue
        tensor = tensor_of(reader.weight)
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        if coupling.dims.of.get((reader.weight, reader.axis), -1) in live:
            found.append(reader)
    return found


def as_reader(op: Op) -> Reader | None:
    if op.kind == "Conv" and op.inputs[1] is not None and op.inputs[0] is not None:
        groups = int(op.attr("group", 1))
        if groups > 1 and op.shape(op.inputs[1])[1] == 1:
            return None  # depthwise: element-wise along channels
        return Reader(op, op.inputs[0], op.inputs[1], 1, groups)
    if op.kind in ("Gemm", "MatMul") and op.inputs[0] is not None and op.inputs[1] is not None:
        if len(op.shape(op.inputs[1])) != 2:
            return None
        return Reader(op, op.inputs[0], op.inputs[1], 1 if op.kind == "Gemm" and op.attr("transB", 0) else 0)
    return None


@dataclass(eq=False)
class Moments:
    """Sums over rows of x and x x^T, kept apart for fitted (0) and held-back (1) inputs; one matrix per group."""

    groups: int
    features: int
    count: list[float] = field(default_factory=lambda: [0.0, 0.0])
    first: Matrix = field(init=False)
    second: Matrix = field(init=False)

    def __post_init__(self) -> None:
        self.first = np.zeros((2, self.groups, self.features))
        self.second = np.zeros((2, self.groups, self.features, self.features))

    def add(self, rows: Sequence[Array], held: bool) -> None:
        self.count[held] += len(rows[0])
        for g, x in enumerate(rows):
            x = x.astype(np.float32, copy=False)
            self.first[int(held), g] += x.sum(0, dtype=np.float64)
            self.second[int(held), g] += x.T @ x

    def mean(self, g: int, part: int | None = None) -> Matrix:
        parts = [0, 1] if part is None else [part]
        total: Matrix = self.first[parts, g].sum(0) / max(1.0, sum(self.count[p] for p in parts))
        return total

    def covariance(self, g: int, part: int | None = None) -> Matrix:
        """[features, features], of all inputs, or of the fitted (0) or held-back (1) ones."""
        parts = [0, 1] if part is None else [part]
        mean = self.mean(g, part)
        total: Matrix = self.second[parts, g].sum(0) / max(1.0, sum(self.count[p] for p in parts))
        return total - np.outer(mean, mean)


class Walk:
    """Runs a network piece by piece over all calibration inputs, so that weights may change on the way.

    `advance(op)` computes everything up to `op`, and keeps only the values that nodes from `op` on still read. A weight
    that was replaced (`replace`) holds for all nodes not yet run."""

    def __init__(self, model: Model, feeds: Sequence[Feeds]) -> None:
        self.proto = model.to_proto()
        self.nodes = list(self.proto.graph.node)
        self.constants = {t.name: t for t in self.proto.graph.initializer}
        self.live: list[dict[str, Array]] = [dict(f) for f in feeds]
        self.outputs = [o.name for o in self.proto.graph.output]
        self.at = 0
        self.place = {o: i for i, n in enumerate(self.nodes) for o in n.output}
        self.last: dict[str, int] = dict.fromkeys(self.outputs, len(self.nodes))
        for i, node in enumerate(self.nodes):
            for name in used_names(node):
                self.last[name] = max(self.last.get(name, -1), i)

    def replace(self, name: str, array: Array) -> None:
        self.constants[name].CopyFrom(onnx.numpy_helper.from_array(array, name))

    def constant(self, name: str) -> Array:
        return onnx.numpy_helper.to_array(self.constants[name])

    def advance(self, output: str | None = None) -> None:
        """Run all nodes before the one that produces `output`; all of them without one."""
        end = len(self.nodes) if output is None else self.place[output]
        if end <= self.at:
            return
        piece = self.nodes[self.at : end]
        self.at = end
        made = {o for n in piece for o in n.output if o}
        read = {name for n in piece for name in used_names(n)}
        keep = [name for name in made if self.last.get(name, -1) >= end]
        if keep:
            session = self._session(piece, sorted(read - made), keep)
            names = {i.name for i in session.get_inputs()}
            for values in self.live:
                results = session.run(keep, {n: values[n] for n in names})
                values.update((name, np.asarray(a)) for name, a in zip(keep, results, strict=True))
        for values in self.live:
            for name in [n for n in values if self.last.get(n, -1) < end]:
                del values[name]

    def _session(self, piece: list[onnx.NodeProto], inputs: list[str], outputs: list[str]) -> ort.InferenceSession:
        first = self.live[0]
        given = [
            onnx.helper.make_tensor_value_info(
                n, onnx.helper.np_dtype_to_tensor_dtype(first[n].dtype), [None] * first[n].ndim
            )
            for n in inputs
            if n not in self.constants and n in first
        ]
        graph = onnx.helper.make_graph(
            piece,
            "piece",
            given,
            [onnx.helper.make_empty_tensor_value_info(n) for n in outputs],
            [self.constants[n] for n in inputs if n in self.constants],
        )
        return open_session(
            onnx.helper.make_model(graph, opset_imports=self.proto.opset_import, ir_version=self.proto.ir_version)
        )


def open_session(proto: onnx.ModelProto) -> ort.InferenceSession:
    """For statistics, where onnxruntime's own rewriting is welcome."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def used_names(node: onnx.NodeProto) -> list[str]:
    """What a node reads, and what its subgraphs capture."""
    names = [n for n in node.input if n]
    for attr in node.attribute:
        for graph in [attr.g] if attr.type == onnx.AttributeProto.GRAPH else list(attr.graphs):
            names += [n for inner in graph.node for n in used_names(inner)]
    return names


def measure(reader: Reader, live: Sequence[dict[str, Array]], seed: int = 0) -> Moments:
    """Moments of what a reader reads, over the batches of a `Walk` that stands before it."""
    rng = np.random.default_rng(seed)
    moments = Moments(reader.groups, reader.features)
    name = reader.x.name or ""
    rows = max(256, ROWS * reader.features) // max(1, len(live))
    for number, values in enumerate(live):
        moments.add(reader.unfold(values[name], rng, max(1, rows)), held=number % HELD == HELD - 1)
    return moments


def split_batches(arrays: Feeds, model: Model, batch: int = 16) -> list[Feeds]:
    """Arrays with all samples along the first axis -> feeds of the network's batch size (`batch` where it is symbolic)."""
    inputs = {v.name or "": v for v in model.ir.graph.inputs}
    fixed = {d for n in arrays if (s := inputs[n].shape) is not None and len(s) and isinstance(d := s[0], int)}
    size = min(fixed) if fixed else batch
    total = min(len(a) for a in arrays.values())
    ends = range(size, total + 1, size) if fixed else range(min(size, total), total + size, size)
    return [{n: a[e - size : e] for n, a in arrays.items()} for e in ends if e - size < total]


SYNTHETIC = 64  # inputs drawn where there is no data


def load(
    source: Any, model: Model, *, sizes: dict[str, int] | None = None, seed: int = 0, batch: int = 16
) -> list[Feeds]:
    """Calibration inputs as feeds of the network's batch size.

    `source`: an .npz file (one array per input, samples along the first axis) or .npy file (one input), the same as
    arrays, ready feeds, or "synthetic" for drawn ones. Raises `UsageError` for anything else."""
    if isinstance(source, list):
        return source
    if isinstance(source, str) and source == "synthetic":
        return synthetic(model, sizes=sizes, seed=seed)
    initial = {v.name for v in model.ir.graph.initializers.values()}
    names = [v.name or "" for v in model.ir.graph.inputs if v.name not in initial]
    if isinstance(source, str | Path):
        try:
            loaded = np.load(source, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"cannot read the calibration inputs: {error}", str(source), "an .npz or .npy file"
            ) from None
        source = dict(loaded) if hasattr(loaded, "files") else loaded
    if isinstance(source, np.ndarray):
        source = {names[0]: source} if len(names) == 1 else {}
    if missing := [n for n in names if n not in source]:
        raise UsageError(
            f"no calibration array for the input '{missing[0]}'", f"found {sorted(source)}", f"name the arrays {names}"
        )
    return split_batches({n: np.asarray(source[n]) for n in names}, model, batch)


def synthetic(model: Model, *, sizes: dict[str, int] | None = None, seed: int = 0) -> list[Feeds]:
    """Drawn inputs; pictures (rank 4, three channels or one) get the 1/f spectrum of natural ones."""
    from spa.inputs import draw

    shapes = infer(model.ir, sizes)
    feeds: list[Feeds] = []
    rows = 0
    while rows < SYNTHETIC:
        feed = draw(model, seed=seed + len(feeds), sizes=sizes, shapes=shapes)
        feed = {
            n: pink(a) if a.ndim == 4 and a.dtype.kind == "f" and a.shape[1] in (1, 3) else a for n, a in feed.items()
        }
        feeds.append(feed)
        rows += min((len(a) for a in feed.values() if a.ndim), default=1)
    return feeds


def pink(noise: Array) -> Array:
    """White noise [N, C, H, W] to amplitude 1/f, channels correlated, unit variance."""
    spectrum = np.fft.rfft2(noise.astype(np.float64))
    fy, fx = np.fft.fftfreq(noise.shape[2])[:, None], np.fft.rfftfreq(noise.shape[3])[None]
    spectrum /= np.maximum(np.hypot(fy, fx), 1 / max(noise.shape[2:]))
    image = np.fft.irfft2(spectrum, s=noise.shape[2:])
    image = 0.7 * image.mean(1, keepdims=True) * np.sqrt(image.shape[1]) + 0.3 * image
    pictures: Array = ((image - image.mean()) / image.std()).astype(noise.dtype)
    return pictures
