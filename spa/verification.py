"""Proof of a prune: the pruned network against the masked dense one, on random inputs, without graph optimisations.

The masked network is built from the plan's `removed` table alone: in the input model those slices are set to zero
(quantised weights to their zero point; divisors, exponents and quantisation scales stay, interface.md). It knows
nothing of coupling, so a wrong rule shows.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spa import inputs as drawing
from spa.coupling.analysis import PROTECTED
from spa.errors import CheckFailed, Unsupported
from spa.inputs import Feeds
from spa.shapes import constants, free_symbols, infer, tensor_of

if TYPE_CHECKING:
    import onnxruntime as ort

    from spa.model import Model
    from spa.planning import Plan, Removed

Array = npt.NDArray[Any]
TOLERANCE = 1e-3  # of the output's spread, float32
TOLERANCE_LOW = 0.05  # float16, bfloat16 and quantised networks
ZERO_POINT = {
    "DequantizeLinear": (0, 2),
    "QLinearConv": (3, 5),
    "QLinearMatMul": (3, 5),
    "ConvInteger": (1, 3),
    "MatMulInteger": (1, 3),
}


CHAOTIC = "the dense network gives other results when its weights change in the last digit"
CALM = 0.5


@dataclass(frozen=True)
class Verification:
    """`max_error`: the largest difference over the spread of the output, over all inputs tried."""

    ok: bool
    max_error: float
    inputs: int
    tolerance: float
    where: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def masked(model: Model, removed: Removed) -> Model:
    """The dense network with the removed slices set to zero."""
    copy = model.clone()
    table = {name: value for value, name in constants(copy.ir).items()}
    keep: set[str | None] = set()
    zeros: dict[str | None, Array] = {}
    for node in copy.ir.graph.all_nodes():
        keep.update(
            v.name
            for i in PROTECTED.get(node.op_type, ())
            if i < len(node.inputs) and (v := node.inputs[i]) is not None
        )
        weight, zero = ZERO_POINT.get(node.op_type, (0, 0))
        z, w = (node.inputs[i] if i < len(node.inputs) else None for i in (zero, weight))
        if zero and z is not None and w is not None and z.name in table and w.name in table:
            shape = tuple(_tensor(table[w.name or ""]).shape.numpy())
            zeros[w.name] = zeros_like(_tensor(table[z.name or ""]).numpy(), shape, channel_axis(node))
    for name, axes in removed.items():
        if name in keep:
            continue
        value = table[name]
        tensor = _tensor(value)
        array = tensor.numpy().copy()
        filled = zeros.get(name, np.zeros(array.shape, array.dtype))
        for axis_text, index in axes.items():
            at = (slice(None),) * int(axis_text) + (list(index),)
            array[at] = filled[at]
        replacement = ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)
        owner = value.producer()
        if owner is None:
            value.const_value = replacement
        else:
            owner.attributes["value"] = ir.AttrTensor("value", replacement)
    return copy


def channel_axis(node: ir.Node) -> int:
    """The axis of a quantised weight that a vector of zero points runs along."""
    if node.op_type in ("QLinearMatMul", "MatMulInteger"):
        return -1
    return node.attributes["axis"].as_int() if "axis" in node.attributes else int(node.op_type == "DequantizeLinear")


def zeros_like(point: Array, shape: tuple[int, ...], axis: int) -> Array:
    """A zero point (per tensor, per channel along `axis`, or per block) for every element of a weight."""
    if point.ndim == 1 and point.size > 1:
        point = point.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])
    elif point.ndim == len(shape):
        for i, (many, few) in enumerate(zip(shape, point.shape, strict=True)):
            point = np.repeat(point, -(-many // few), axis=i).take(range(many), axis=i)
    return np.broadcast_to(point, shape)


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    tensor = tensor_of(value)
    assert tensor is not None
    return tensor


class Session:
    """onnxruntime with graph optimisations off, on a model written to a temporary folder.

    Raises `Unsupported` where it cannot load the network, for want of a kernel for this machine, say."""

    def __init__(self, model: Model) -> None:
        import onnxruntime as ort

        folder = Path(tempfile.mkdtemp(prefix="spa-verify-"))
        try:
            path = model.save(folder / "model.onnx")
            options = ort.SessionOptions()
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.log_severity_level = 4
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            self.session: ort.InferenceSession = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors share no type
            what = f"onnxruntime cannot run the network here: {str(error).splitlines()[0][:300]}"
            raise Unsupported(what, hint="--no-verify writes the result unproven") from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def run(self, feeds: Feeds) -> list[Any]:
        return list(self.session.run(None, feeds))

    @property
    def outputs(self) -> list[str]:
        return [o.name for o in self.session.get_outputs()]


def difference(a: Any, b: Any, spread: float = 0.0) -> float:
    """The largest |a - b| over the spread of a; inf where shapes or finiteness differ.

    The spread is a's standard deviation, or `spread` where that is larger: what a varies by over several inputs."""
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return max(map(difference, a, b), default=0.0)
    if isinstance(a, list | dict) or isinstance(b, list | dict):
        return 0.0 if type(a) is type(b) and not isinstance(a, list) else float(np.inf)
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return float(np.inf)
    if a.size == 0 or a.dtype.kind in "biuOSU":
        return 0.0 if np.array_equal(a, b) else 1.0
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return float(np.inf)
    a, b = a[finite], b[finite]
    if not a.size:
        return 0.0
    # a single number has no spread of its own, only a size
    return float(np.abs(a - b).max() / max(a.std(), spread, 1e-3 * float(np.sqrt(np.mean(a * a))), 1e-9))


def spreads(runs: list[list[Any]]) -> list[float]:
    """Per output: the standard deviation over all inputs together; 0 where it is no floating-point array."""
    found = []
    for outputs in zip(*runs, strict=True):
        if all(isinstance(o, np.ndarray) and o.dtype.kind == "f" for o in outputs):
            flat = np.concatenate([o.reshape(-1).astype(np.float64) for o in outputs])
            flat = flat[np.isfinite(flat)]
            found.append(float(flat.std()) if flat.size else 0.0)
        else:
            found.append(0.0)
    return found


def tolerance(model: Model) -> float:
    kinds = {_tensor(v).dtype for v in constants(model.ir)}
    low = {
        ir.DataType.FLOAT16,
        ir.DataType.BFLOAT16,
        ir.DataType.INT8,
        ir.DataType.UINT8,
        ir.DataType.INT4,
        ir.DataType.UINT4,
    }
    return TOLERANCE_LOW if kinds & low else TOLERANCE


def feeds_for(
    session: Session,
    model: Model,
    count: int,
    seed: int,
    given: list[Feeds] | None,
    sizes: dict[str, int] | None = None,
) -> list[Feeds]:
    """Inputs on which the network runs; with symbolic axes every other set has other sizes."""
    if given is not None:
        return given
    symbols = free_symbols(model.ir, sizes or {})
    chosen = infer(model.ir, sizes).sizes
    found: list[Feeds] = []
    for k in range(count):
        bigger = {s: chosen[s] + (1 if symbols[s] else 0) for s in symbols} if k % 2 else {}
        why = ""
        for feeds in drawing.attempts(model, seed=seed + k, sizes=(sizes or {}) | bigger):
            try:
                session.run(feeds)
            except Exception as error:  # onnxruntime's errors share no type
                why = str(error).splitlines()[0][:200]
            else:
                found.append(feeds)
                break
        else:
            if not bigger:
                raise drawing.none_runs(model, why)
    return found


def verify(
    model: Model,
    pruned: Model,
    plan: Plan | None = None,
    *,
    count: int = 2,
    seed: int = 0,
    inputs: list[Feeds] | None = None,
    sizes: dict[str, int] | None = None,
) -> Verification:
    """Compare `pruned` with the masked dense network of `plan`, or with `model` itself where there is no plan.

    Raises `CheckFailed` where no input can be found on which the dense network runs."""
    dense, pruned = masked(model, plan.removed) if plan is not None else model.clone(), pruned.clone()
    ranked = open_up(dense, pruned)
    shaken = Shaken(dense)
    reference = Session(dense)
    limit = tolerance(model)
    sets = feeds_for(reference, model, count, seed, inputs, sizes)
    try:
        other = Session(pruned)
        if reference.outputs != other.outputs:
            what = f"the outputs are {other.outputs} instead of {reference.outputs}"
            return Verification(False, float(np.inf), 0, limit, what)
        worst, proven, failing = compare(reference, other, sets, limit, ranked, shaken)
        if not proven and inputs is None:
            more = feeds_for(reference, model, 2 * count, seed + 1000, None, sizes)
            worst, proven, failing = compare(reference, other, more, limit, ranked, shaken)
    except Exception as error:  # onnxruntime's errors share no type
        what = f"the pruned network does not run: {str(error).splitlines()[0][:300]}"
        return Verification(False, float(np.inf), len(sets), limit, what)
    if not proven:
        return Verification(False, float(np.inf), 0, limit, CHAOTIC)
    if worst <= limit:
        return Verification(True, worst, proven, limit)
    return Verification(False, worst, proven, limit, first_difference(model, pruned, plan, failing, limit))


def compare(
    reference: Session, other: Session, sets: list[Feeds], limit: float, ranked: set[str], shaken: Shaken
) -> tuple[float, int, Feeds]:
    """The largest difference, on how many inputs it stands, and where it was found.

    An input on which the reference itself flips when its weights are shaken proves nothing by its outputs behind a
    ranking (`ranked`); what goes into the ranking must agree all the same. Where nothing else is left to compare, the
    input does not count."""
    expected = [reference.run(feeds) for feeds in sets]
    scale = spreads(expected)
    firm = [name not in ranked for name in reference.outputs]
    worst, proven, failing = 0.0, 0, sets[0]
    for feeds, known in zip(sets, expected, strict=True):
        errors = list(map(difference, known, other.run(feeds), scale))
        error = max(errors, default=0.0)
        if error > limit and not shaken.stable(feeds, known, scale, limit / 4):
            rest = [e for e, sure in zip(errors, firm, strict=True) if sure]
            if all(firm) or not rest or max(rest) > limit:
                continue
            error = max(rest)
        proven += 1
        if error > worst:
            worst, failing = error, feeds
    return worst, proven, failing


SATURATE = {"Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid", "Tanh"}
RANK = {"TopK", "NonMaxSuppression", "ArgMax", "ArgMin"}


def open_up(a: Model, b: Model) -> set[str]:
    """Let both networks also show what a last Softmax or Sigmoid saturates, where a difference could hide, and what a
    ranking ranks. Returns the names of the outputs that lie behind a ranking."""
    have = [{v.name: v for n in m.ir.graph for v in n.outputs} for m in (a, b)]
    last = [n for v in a.ir.graph.outputs if (n := v.producer()) is not None and n.op_type in SATURATE]
    behind: set[ir.Value] = set()
    dtypes = infer(a.ir).dtype
    inner = [n.inputs[0] for n in last]
    for node in a.ir.graph:
        if node.op_type in RANK:
            inner += [v for v in node.inputs if v in dtypes and ir.DataType(dtypes[v]).is_floating_point()]
        if node.op_type in RANK or any(v in behind for v in node.inputs if v is not None):
            behind.update(node.outputs)
    shown = {v.name for v in a.ir.graph.outputs}
    for value in inner:
        name = value.name if value is not None else None
        if name in have[0] and name in have[1] and name not in shown:
            for m, values in zip((a, b), have, strict=True):
                m.ir.graph.outputs.append(values[name])
            shown.add(name)
    return {v.name or "" for v in behind}


class Shaken:
    """The reference with its weights changed in their last digit, as rounding changes sums: what does not survive that
    is no property of the network. A detector that ranks boxes whose scores are all but equal reorders them."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @cached_property
    def sessions(self) -> list[Session]:
        return [Session(shake(self.model, seed)) for seed in range(2)]

    def stable(self, feeds: Feeds, expected: list[Any], scale: list[float], limit: float) -> bool:
        runs = (session.run(feeds) for session in self.sessions)
        return all(max(map(difference, expected, outputs, scale), default=0.0) <= limit for outputs in runs)


def calm(model: Model) -> Model:
    """A copy with its float32 matrices and filters scaled down, so that it does not amplify rounding. That a plan takes
    coupled channels out is a matter of structure: it holds for these weights exactly when it holds for all."""
    copy = model.clone()
    for value in constants(copy.ir):
        tensor = tensor_of(value)
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) > 1 and not value.producer():
            value.const_value = ir.Tensor((CALM * tensor.numpy()).astype(np.float32), name=tensor.name)
    return copy


SMALL = 8  # elements


def shake(model: Model, seed: int) -> Model:
    """A copy whose float32 weights and quantisation scales differ by about half a unit in the last place. Other small
    constants stay: an exponent or the factors of a resize are no weights."""
    copy, rng = model.clone(), np.random.default_rng(seed)
    scales = {v for n in copy.ir.graph.all_nodes() if "Linear" in n.op_type for v in n.inputs[1::3] if v is not None}
    for value in constants(copy.ir):
        tensor = tensor_of(value)
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or value.producer() is not None:
            continue
        if tensor.size <= SMALL and value not in scales:
            continue
        array = tensor.numpy()
        noise = 6e-8 * rng.standard_normal(array.shape)
        value.const_value = ir.Tensor((array * (1 + noise)).astype(array.dtype), name=tensor.name)
    return copy


def first_difference(model: Model, pruned: Model, plan: Plan | None, feeds: Feeds, limit: float) -> str:
    """The first node, in order of execution, whose output differs on the channels that both networks have."""
    dense = masked(model, plan.removed) if plan is not None else model.clone()
    cut = pruned.clone()
    common = {v.name for n in cut.ir.graph for v in n.outputs}
    order = [(n.name or "", n.op_type, v.name or "") for n in dense.ir.graph for v in n.outputs if v.name in common]
    runs = []
    for copy in (dense, cut):
        have = {v.name for v in copy.ir.graph.outputs}
        by_name = {v.name: v for n in copy.ir.graph for v in n.outputs}
        copy.ir.graph.outputs.extend(by_name[name] for _, _, name in order if name not in have)
        try:
            session = Session(copy)
            runs.append(dict(zip(session.outputs, session.run(feeds), strict=True)))
        except Exception:  # some intermediate results cannot be outputs (untyped, sequences): then no node can be named
            return ""
    for node, kind, name in order:
        a, b = runs[0].get(name), runs[1].get(name)
        if (
            isinstance(a, np.ndarray)
            and isinstance(b, np.ndarray)
            and a.ndim == b.ndim
            and a.shape == b.shape
            and difference(a, b) > limit
        ):
            return f"node '{node}' ({kind}), output '{name}'"
    return ""


def require(result: Verification) -> Verification:
    """Raise `CheckFailed` where a verification does not hold."""
    if not result.ok:
        raise CheckFailed(
            f"the pruned network differs from the masked one: error {result.max_error:.3g} of the output's spread, "
            f"{result.tolerance:g} allowed; nothing was written",
            result.where,
            "--keep the group at fault (`spa explain MODEL`), and report the model",
        )
    return result
