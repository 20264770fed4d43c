"""`lowrank`: a layer as two narrower ones, by what its outputs do on the calibration inputs.

With second moments C of what a layer reads, replacing W [outputs, inputs] by a product of rank r loses least where the
product is U U^T W, the columns of U the r first eigenvectors of W C W^T:

    min over rank r of  E |(W - W') x|^2 = sum of the eigenvalues beyond the r-th

(Eckart & Young for W C^1/2, the "truncation-aware whitening" of Wang et al. 2024, SVD-LLM, arXiv:2403.07378, section
3.1, without a factor of C). U^T W reads the inputs, with the kernel that the layer had, and U, a 1x1 convolution or a
product, makes the outputs; a bias takes up what means change. r (inputs + outputs) multiply-accumulates per position
stand against inputs x outputs, so it pays below r = inputs outputs / (inputs + outputs).

1. ranks: the same everywhere, by a share of the outputs' energy, or by a knapsack over all layers: least sum of
   relative errors within the multiply-accumulates that may stay
2. layers are replaced in order of execution, with moments of the network as it became

`correct` goes the other way: a sparse network gets, beside each layer that lost weights, a branch of low rank for what
it lost, W_dense - W, weighted alike (Liu et al. 2024, EoRA, arXiv:2410.21271, section 3.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spa.calibration import MAX_FEATURES, Walk, measure
from spa.calibration.readers import Convolution, Product, Reader
from spa.cost import inspect
from spa.errors import CheckFailed
from spa.inputs import Feeds
from spa.model import Model
from spa.passes import edit
from spa.pipeline import Result
from spa.shapes import constants, tensor_of

Matrix = npt.NDArray[np.float64]
LEVELS = 16  # ranks per layer that the knapsack may choose from


@dataclass(frozen=True)
class Factored:
    """What was done to one layer. `error`: squared, of its outputs, over their variance; of a correction, what is left
    of what was lost."""

    weight: str
    node: str
    rank: int
    full: int
    macs: int  # before
    macs_after: int
    error: float


@dataclass(frozen=True)
class LowRank:
    """Split layers into two of low rank where that saves multiply-accumulates, or correct those of a sparse network.

    One of `rank` (the same for all), `energy` (the share of every layer's outputs that must stay) and `macs` (the share
    of the network's multiply-accumulates that may stay). `correct`: the dense network that a sparse one came from."""

    name: ClassVar[str] = "lowrank"

    rank: int | None = None
    energy: float | None = None
    macs: float | None = None
    correct: str | None = None
    calib: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if sum(v is not None for v in (self.rank, self.energy, self.macs)) != 1:
            raise ValueError("one of rank, energy and macs")
        if self.rank is not None and self.rank < 1:
            raise ValueError("a rank is at least 1")
        if any(v is not None and not 0 < v <= 1 for v in (self.energy, self.macs)):
            raise ValueError("energy and macs are shares, more than 0 and at most 1")
        if self.correct is not None and self.macs is not None:
            raise ValueError("a correction adds multiply-accumulates: rank or energy")

    def run(self, model: Model) -> Result:
        from spa.calibration import load
        from spa.model import load as load_model

        feeds = load(self.calib, model, seed=self.seed) if self.calib else None
        if self.correct is not None:
            return correct(model, load_model(self.correct), calib=feeds, rank=self.rank, energy=self.energy)
        return factor(model, calib=feeds, rank=self.rank, energy=self.energy, macs=self.macs)


@dataclass(eq=False)
class Candidate:
    """A layer that may become two: its matrix [outputs, inputs], positions it is applied to, energy beyond each rank."""

    reader: Reader
    node: ir.Node  # in the network that is changed
    weight: Matrix
    positions: int
    lost: Matrix  # [rank] of the outputs' energy, relative, when so many directions stay

    @property
    def macs(self) -> int:
        return self.positions * int(self.weight.size)

    @property
    def break_even(self) -> int:
        """The largest rank that saves something."""
        rows, cols = self.weight.shape
        return int((rows * cols - 1) // (rows + cols))

    def cost(self, rank: int) -> int:
        rows, cols = self.weight.shape
        return int(self.positions * rank * (rows + cols))


def factor(
    model: Model,
    *,
    calib: list[Feeds] | None = None,
    rank: int | None = None,
    energy: float | None = None,
    macs: float | None = None,
) -> Result:
    """A copy of `model` with layers in two where it saves; facts under `lowrank`. Without `calib` inputs count as white.

    Raises `CheckFailed` where a share of multiply-accumulates cannot be reached."""
    from spa.sparsity.thinning import workbench

    out = model.clone()
    coupling = workbench(out)
    walk = Walk(coupling.model, calib) if calib else None
    found = list(candidates(out, coupling, walk, None))
    ranks = (
        by_macs(found, macs, inspect(model, coupling.shapes.sizes).macs)
        if macs is not None
        else [chosen(c, rank, energy) for c in found]
    )
    done = []
    walks = (Walk(coupling.model, calib), Walk(coupling.model, calib)) if calib else None
    for candidate, r in zip(found, ranks, strict=True):
        if not 0 < r <= candidate.break_even:
            continue
        reader = candidate.reader
        moment, means = moments_of(reader, walks)
        u, lost = directions(candidate.weight, moment)
        down, up = u[:, :r].T @ candidate.weight, u[:, :r]
        shift = None
        if walks is not None and means is not None and reader.bias() is not None:
            shift = means[1] - up @ (down @ means[0])
            name = reader.weight.name or ""
            old = walks[0].constant(name)
            walks[0].replace(name, reader.tensor((up @ down)[None], old))
            bias = walks[0].constant(reader.bias().name or "")  # type: ignore[union-attr]
            walks[0].replace(reader.bias().name or "", (bias + shift).astype(bias.dtype))  # type: ignore[union-attr]
        split(out, candidate, down, up, shift)
        done.append(told(candidate, r, candidate.cost(r), lost[r]))
    drop_unused(out)
    return Result(out, facts={"lowrank": [asdict(d) for d in done]})


def correct(
    model: Model,
    dense: Model,
    *,
    calib: list[Feeds] | None = None,
    rank: int | None = None,
    energy: float | None = None,
) -> Result:
    """A copy of a sparse network with branches of low rank beside the layers that differ from the dense one."""
    from spa.sparsity.thinning import workbench

    out = model.clone()
    coupling = workbench(out)
    walk = Walk(coupling.model, calib) if calib else None
    was = {name: tensor_of(value) for value, name in constants(dense.ir).items()}
    done = []
    for candidate in candidates(out, coupling, walk, was):
        r = chosen(candidate, rank, energy)
        moment, _ = moments_of(candidate.reader, (walk, walk) if walk else None)
        u, lost = directions(candidate.weight, moment)
        r = min(r, len(lost) - 1)
        if r:
            branch(out, candidate, u[:, :r].T @ candidate.weight, u[:, :r])
            done.append(told(candidate, r, candidate.macs + candidate.cost(r), lost[r]))
    return Result(out, facts={"lowrank": [asdict(d) for d in done]})


def told(candidate: Candidate, rank: int, macs: int, error: float) -> Factored:
    name = candidate.reader.weight.name or ""
    full = min(candidate.weight.shape)
    return Factored(name, candidate.reader.name, rank, full, candidate.macs, macs, round(float(error), 6))


# What may be split, and how far -----------------------------------------------------------------------------------


def candidates(
    out: Model, coupling: Any, walk: Walk | None, dense: dict[str, ir.TensorProtocol | None] | None
) -> Iterator[Candidate]:
    """Convolutions of one group, Gemm and MatMul, whose weight nobody else reads; of a sparse network only what differs
    from the dense one, with the difference as matrix."""
    from spa.calibration import contractions

    nodes = {n.outputs[0].name: n for n in out.ir.graph}
    for reader in contractions(coupling):
        node = nodes.get(reader.op.out.name)
        scaled = any(float(reader.op.attr(a, 1.0)) != 1.0 for a in ("alpha", "beta"))
        plain = isinstance(reader, Convolution) or (type(reader) is Product and reader.weight is reader.op.inputs[1])
        if node is None or not plain or reader.groups > 1 or len(reader.weight.uses()) > 1 or node.domain or scaled:
            continue
        if reader.features > MAX_FEATURES or (isinstance(reader, Product) and len(reader.shape) > 2):
            continue
        tensor = tensor_of(reader.weight)
        assert tensor is not None
        matrix = reader.matrix(tensor.numpy())[0]
        if dense is not None:
            old = dense.get(reader.weight.name or "")
            if old is None or tuple(old.shape.numpy()) != reader.shape:
                continue
            matrix = reader.matrix(old.numpy())[0] - matrix
            if not matrix.any():
                continue
        shape = reader.op.shape(reader.op.out)
        positions = int(np.prod(shape)) // matrix.shape[0]
        moment, _ = moments_of(reader, (walk, walk) if walk else None)
        yield Candidate(reader, node, matrix, positions, directions(matrix, moment)[1])


def moments_of(reader: Reader, walks: tuple[Walk, Walk] | None) -> tuple[Matrix | None, tuple[Matrix, Matrix] | None]:
    """Second moments of what a layer reads, central where it has a bias, and means of that and of its dense outputs."""
    name = reader.weight.name or ""
    if walks is None or name not in walks[0].constants or not walks[0].live:
        return None, None
    found = measure(reader, reader.observe(walks[0]), reader.observe(walks[1]), walks[1].constant(name))
    s = found.statistics(None, reader.bias() is not None)
    return s.xx[0], (s.x[0], s.y[0])


def directions(weight: Matrix, moment: Matrix | None) -> tuple[Matrix, Matrix]:
    """Orthonormal directions of the outputs, the strongest first, and the share of energy lost when r of them stay."""
    gram = weight @ weight.T if moment is None else weight @ moment @ weight.T
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    values = np.maximum(values[::-1], 0)
    kept = np.concatenate([[0.0], np.cumsum(values)])
    return vectors[:, ::-1], np.maximum(0, 1 - kept / max(float(kept[-1]), 1e-30))


def chosen(candidate: Candidate, rank: int | None, energy: float | None) -> int:
    if rank is not None:
        return rank
    assert energy is not None
    return int(np.argmax(candidate.lost <= 1 - energy + 1e-12))


def by_macs(found: list[Candidate], share: float, total: int) -> list[int]:
    """Ranks with the least sum of relative errors within a share of all multiply-accumulates (`total`); 0: left whole."""
    from spa.knapsack import knapsack

    room = share * total - (total - sum(c.macs for c in found))
    levels = [[0, *ranks_of(c)] for c in found]
    errors = [[float(c.lost[r]) if r else 0.0 for r in ranks] for c, ranks in zip(found, levels, strict=True)]
    costs = [[float(c.cost(r) if r else c.macs) for r in ranks] for c, ranks in zip(found, levels, strict=True)]
    best = knapsack(errors, costs, room) if found and sum(map(min, costs)) <= room else None
    if best is None:
        least = (total - sum(c.macs for c in found) + sum(map(min, costs))) / total if total else 1.0
        what = f"low rank leaves {least:.1%} of the multiply-accumulates at least, not {share:.1%}"
        raise CheckFailed(what, hint="a larger share, or spa prune --macs")
    return [ranks[i] for ranks, i in zip(levels, best, strict=True)]


def ranks_of(candidate: Candidate) -> list[int]:
    """Ranks below break-even, evenly spread."""
    most = candidate.break_even
    return sorted({round(r) for r in np.linspace(1, most, min(LEVELS, most))}, reverse=True) if most > 0 else []


# Graph -----------------------------------------------------------------------------------------------------------


def split(out: Model, candidate: Candidate, down: Matrix, up: Matrix, shift: Matrix | None) -> None:
    """node(x, W, b) becomes node(x, down) and a 1x1 node(., up, b), which keeps the name of the output."""
    node = candidate.node
    hidden = narrow(out, candidate, down)
    node.replace_input_with(0, hidden)
    node.replace_input_with(1, weight(out, candidate, node, up, "up", 1))
    for name in ("kernel_shape", "strides", "pads", "dilations", "auto_pad", "group", "transA"):
        node.attributes.pop(name, None)
    bias = candidate.reader.bias()
    if shift is not None and bias is not None:
        value = next(v for v, n in constants(out.ir).items() if n == bias.name)
        old = tensor_of(value)
        assert old is not None
        edit.set_constant(value, (old.numpy() + shift).astype(old.numpy().dtype))


def branch(out: Model, candidate: Candidate, down: Matrix, up: Matrix) -> None:
    """node(x, W, b) + up down x, under the name that the node's output had."""
    node, graph, taken = candidate.node, candidate.node.graph, edit.taken_names(out.ir)
    assert graph is not None
    hidden = narrow(out, candidate, down)
    second = ir.Node(
        "", node.op_type, inputs_of(out, node, hidden, weight(out, candidate, node, up, "up", 1)), version=node.version
    )
    for name in ("transB", "alpha"):
        if name in node.attributes:
            second.attributes[name] = node.attributes[name]
    label = node.name or node.outputs[0].name
    second.name, second.outputs[0].name = f"{label}/up", edit.unique_name(taken, f"{node.outputs[0].name}/up")
    y = node.outputs[0]
    add = ir.Node("", "Add", [y, second.outputs[0]], name=f"{label}/corrected")
    new, name = add.outputs[0], y.name or ""
    new.type, new.shape = y.type, y.shape
    second.outputs[0].type, second.outputs[0].shape = y.type, y.shape
    y.replace_all_uses_with(new, replace_graph_outputs=True)
    add.replace_input_with(0, y)
    y.name, new.name = edit.unique_name(taken, f"{name}/sparse"), name
    graph.insert_after(node, [second, add])


def narrow(out: Model, candidate: Candidate, down: Matrix) -> ir.Value:
    """The first of the two: what the node does to its inputs, for fewer outputs and without a bias."""
    node, graph = candidate.node, candidate.node.graph
    assert graph is not None
    x, old = node.inputs[0], node.outputs[0]
    first = ir.Node(
        "", node.op_type, inputs_of(out, node, x, weight(out, candidate, node, down, "down", 0)), version=node.version
    )
    for name, attribute in node.attributes.items():
        if name not in ("alpha", "beta"):
            first.attributes[name] = attribute
    first.name = f"{node.name or old.name}/down"
    value = first.outputs[0]
    value.name, value.type = edit.unique_name(edit.taken_names(out.ir), f"{old.name}/down"), old.type
    if old.shape is not None:
        axis = 1 if node.op_type == "Conv" else -1
        dims = list(old.shape)
        dims[axis] = down.shape[0]
        value.shape = ir.Shape(dims)
    graph.insert_before(node, first)
    return value


def inputs_of(out: Model, node: ir.Node, x: ir.Value | None, w: ir.Value) -> list[ir.Value | None]:
    """Data, weight, and for a Gemm of old, which cannot do without, a bias of zero."""
    if node.op_type != "Gemm" or out.ir.opset_imports.get("", 1) >= 11:
        return [x, w]
    assert w.dtype is not None
    name = edit.unique_name(edit.taken_names(out.ir), f"{w.name}/zero")
    return [x, w, edit.add_constant(out.ir, node, ir.tensor(np.zeros(1, w.dtype.numpy()), name=name))]


def weight(out: Model, candidate: Candidate, node: ir.Node, matrix: Matrix, name: str, place: int) -> ir.Value:
    """A matrix [outputs, inputs] as the node stores it; `place` 0: with the kernel it had, 1: without."""
    reader, shape = candidate.reader, candidate.reader.shape
    array = matrix
    if isinstance(reader, Convolution):
        array = (
            matrix.reshape(len(matrix), *shape[1:])
            if place == 0
            else matrix.reshape(*matrix.shape, *[1] * (len(shape) - 2))
        )
    elif reader.axis == 0:
        array = matrix.T
    old = tensor_of(reader.weight)
    assert old is not None
    taken = edit.taken_names(out.ir)
    label = edit.unique_name(taken, f"{reader.weight.name}/{name}")
    return edit.add_constant(out.ir, node, ir.tensor(np.ascontiguousarray(array).astype(old.numpy().dtype), name=label))


def drop_unused(model: Model) -> None:
    import onnx_ir.passes.common as common

    common.RemoveUnusedNodesPass()(model.ir)
