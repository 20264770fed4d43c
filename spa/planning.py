"""A plan is data: which channels go, in JSON, replayable on a retrained network and enough to build the masked one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from spa.coupling.prepare import COPY
from spa.errors import UsageError

if TYPE_CHECKING:
    from spa.allocate import Chosen, Offers
    from spa.coupling import Coupling, Group
    from spa.coupling.analysis import Mask
    from spa.model import Model

SCHEMA = 1
Removed = dict[str, dict[str, list[int]]]


@dataclass(frozen=True)
class Plan:
    """`removed`: constant tensor -> axis -> indices; the rest says why and how (interface.md)."""

    model: dict[str, str]
    removed: Removed
    groups: list[dict[str, Any]] = field(default_factory=list)
    blocked: list[dict[str, Any]] = field(default_factory=list)
    constants: dict[str, list[Any]] = field(default_factory=dict)
    pipeline: str = "slice"
    schema: int = SCHEMA
    sparsity: dict[str, str] = field(default_factory=dict)  # weight -> pattern, of the network that is left

    def to_json(self) -> str:
        keys = ("schema", "model", "pipeline", "removed", "groups", "blocked", "constants")
        thin = {"sparsity": self.sparsity} if self.sparsity else {}
        return json.dumps({k: getattr(self, k) for k in keys} | thin, indent=1) + "\n"

    def _repr_html_(self) -> str:
        from spa.report.notebook import plan

        return plan(self)

    @staticmethod
    def from_json(text: str, where: str = "plan") -> Plan:
        try:
            data = json.loads(text)
            removed = {
                str(n): {str(int(a)): [int(i) for i in index] for a, index in axes.items()}
                for n, axes in data["removed"].items()
            }
            schema = data["schema"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"not a plan: {type(error).__name__}: {error}", where, "a file written by `spa prune --plan`"
            ) from None
        if schema != SCHEMA:
            raise UsageError(
                f"plan schema {schema} is not the one understood here ({SCHEMA})", where, "write the plan again"
            )
        return Plan(
            data.get("model", {}),
            removed,
            data.get("groups", []),
            data.get("blocked", []),
            data.get("constants", {}),
            data.get("pipeline", "slice"),
            sparsity=data.get("sparsity", {}),
        )

    @staticmethod
    def load(path: str | Path) -> Plan:
        try:
            return Plan.from_json(Path(path).read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the plan: {error}", str(path)) from None


def approximate(decided: Plan) -> bool:
    """Does it remove channels of groups whose removal is only close to masking?"""
    return any(not g.get("exact", True) and g.get("removed") for g in decided.groups)


def removed_slices(coupling: Coupling, gone: dict[int, Mask]) -> Removed:
    """The constants that become shorter under `gone`, by name."""
    table: Removed = {}
    for value, name in coupling.constants.items():
        if COPY in value.meta:
            continue
        axes = {
            str(a): np.flatnonzero(gone[d]).tolist()
            for a in range(len(coupling.shapes.shape.get(value) or ()))
            if (d := coupling.dims.of.get((value, a), -1)) in gone
        }
        if axes:
            table[name] = axes
    return table


def gone_from(coupling: Coupling, removed: Removed) -> dict[int, Mask]:
    """The inverse of `removed_slices`: the channels all of whose constant slices the table names.

    Raises `UsageError` where the table names tensors or slices that are no union of channels of this network."""
    want: dict[int, Mask] = {}
    values = {name: value for value, name in coupling.constants.items() if COPY not in value.meta}
    for name, axes in removed.items():
        if name not in values:
            raise UsageError(
                f"the plan removes slices of '{name}', which this network does not have",
                hint="replay a plan on the network it was made for, or a retrained one",
            )
        shape = coupling.shapes.shape.get(values[name]) or ()
        for axis, index in axes.items():
            dim = coupling.dims.of.get((values[name], int(axis)))
            if dim is None or (index and max(index) >= shape[int(axis)]):
                raise UsageError(
                    f"the plan removes slices of '{name}' along axis {axis} that it does not have (shape {shape})",
                    hint="replay it on the network it was made for",
                )
            mask = want.setdefault(dim, np.zeros(coupling.dims.size[dim], bool))
            mask[index] = True
    masks: Chosen = {}
    for group in coupling.groups:
        whole = np.ones(group.size, bool)
        held = np.zeros(group.size, bool)
        for dim, labels in group.labels.items():
            if dim in coupling.parameters:
                here = labels >= 0
                held[labels[here]] = True
                whole[np.unique(labels[here & ~want.get(dim, np.zeros(len(labels), bool))])] = False
        masks[group.id] = whole & held
    gone = coupling.removal(masks)
    if removed_slices(coupling, gone) != {n: {a: sorted(i) for a, i in axes.items()} for n, axes in removed.items()}:
        raise UsageError(
            "the plan's slices are no union of this network's coupled channels",
            hint="replay it on the network it was made for",
        )
    return gone


def channels(coupling: Coupling, gone: dict[int, Mask]) -> Chosen:
    """Per group: the channels all of whose indices are gone, on every dim that `gone` speaks of (at least one)."""
    found: Chosen = {}
    for group in coupling.groups:
        lost, spoken = np.ones(group.size, bool), np.zeros(group.size, bool)
        for dim, labels in group.labels.items():
            if dim in gone:
                here = labels >= 0
                spoken[labels[here]] = True
                lost[np.unique(labels[here & ~gone[dim]])] = False
        if (lost & spoken).any():
            found[group.id] = lost & spoken
    return found


def transfer(source: Coupling, gone: dict[int, Mask], target: Coupling) -> dict[int, Mask]:
    """What is gone from one network, in terms of another whose values bear the same names (before and after folding)."""
    names: dict[tuple[str | None, int | None], int] = {
        (v.name, a): d for (v, a), d in source.dims.of.items() if isinstance(v, ir.Value) and v.name
    }
    seen: dict[int, Mask] = {}
    for (value, axis), dim in target.dims.of.items():
        twin = names.get((value.name, axis)) if isinstance(value, ir.Value) else None
        if twin is not None and dim not in seen and source.dims.size[twin] == target.dims.size[dim]:
            seen[dim] = gone.get(twin, np.zeros(target.dims.size[dim], bool))
    return target.removal(channels(target, seen))


def matcher(patterns: Sequence[str], coupling: Coupling) -> Callable[[Group], bool]:
    """Does any pattern (glob) name the group, one of its weights or values, or a node that touches it?"""
    if not patterns:
        return lambda group: False
    by_node = {
        v.name or "": o.node.name or ""
        for o in coupling.ops
        for v in [*o.inputs, *o.outputs]
        if v is not None and any(fnmatch(o.node.name or "", p) for p in patterns)
    }

    def hit(group: Group) -> bool:
        names = {group.id, *(m.value for m in group.members)}
        return any(n in by_node for n in names) or any(fnmatch(n, p) for n in names for p in patterns)

    names = {g.id for g in coupling.groups} | {o.node.name or "" for o in coupling.ops}
    names |= {v.name or "" for o in coupling.ops for v in [*o.inputs, *o.outputs] if v is not None}
    for p in patterns:
        if not any(fnmatch(n, p) for n in names):
            raise UsageError(f"--keep '{p}' matches no node, weight or group", hint="`spa inspect` lists them")
    return hit


def plan(
    model: Model,
    groups: Coupling | None = None,
    *,
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    size: int | None = None,
    latency: float | None = None,
    cost_table: Any = None,
    criterion: str | None = None,
    aggregate: str | None = None,
    normalise: str | None = None,
    scope: str = "auto",
    align: int = 1,
    keep: Sequence[str] = (),
    calib: Any = None,
    refine: int = 0,
    gradients: Any = None,
    seed: int = 0,
    sparsity: str | None = None,
    targets: Sequence[str] = (),
    dense: Sequence[str] = (),
) -> Plan:
    """Decide which channels go. Exactly one of the budgets: `ratio` of the channels of every group (of every class, see
    `scope`) to remove; share of `macs` or `params` to keep; `size` in bytes of the written model; share of the `latency`
    to keep that `cost_table` (`spa.cost_table`) gives.

    See `spa.importance.table` for `criterion`, `spa.importance.combine` for `aggregate` and `normalise`, `spa.allocate`
    for `scope` and `align`. With calibration inputs (`spa.calibration.load`) the criterion is "obs" and levels are
    chosen by measured error curves, and refined by the real drift of so many candidates (`spa.refine`); without them it
    is "l2". `gradients`: see `spa.importance.gradient.load`.

    `sparsity="auto"`: the budget is spent on patterns too (`spa.sparsity.joint`), those that `targets` are fast with, in
    all layers but `dense`; the plan's `sparsity` says which layer is to have which."""
    from spa import allocate
    from spa.cost import Budget
    from spa.cost_table import CostTable
    from spa.coupling import analyze

    budgets = {"ratio": ratio, "macs": macs, "params": params, "size": size, "latency": latency}
    given = {k: v for k, v in budgets.items() if v is not None}
    if len(given) != 1:
        raise UsageError(
            f"one budget is needed, {len(given)} given: {', '.join(given) or 'none'}",
            hint="one of ratio, macs, params, size, latency",
        )
    coupling = groups or analyze(model)
    kind, amount = next(iter(given.items()))
    if not 0 <= amount < 1 if kind == "ratio" else kind != "size" and not 0 < amount <= 1:
        raise UsageError(f"{kind} {amount} is not a share between 0 and 1")
    if (latency is None) != (cost_table is None):
        raise UsageError("latency and cost_table belong together", hint="--latency 0.5 --cost-table FILE.toml")
    measure: Any = CostTable.load(cost_table) if cost_table is not None else kind
    if by_curves(calib, criterion, scope):
        from spa.workbench import CalibratedPlanner

        planner = CalibratedPlanner(model, coupling, calib, align=align, keep=keep)
        if sparsity == "auto":
            from spa.sparsity.joint import JointPlanner

            lines = measure.thin if isinstance(measure, CostTable) else None
            return JointPlanner(planner, targets, dense, lines).plan(measure, amount)
        return planner.plan(measure, max(0.0, amount - _overhead(model)) if kind == "size" else amount, refine)
    if sparsity is not None:
        raise UsageError(
            f"sparsity '{sparsity}' cannot be planned here", hint="'auto', with calib and a budget of cost"
        )
    if refine:
        raise UsageError("refinement needs calibration inputs and a budget of cost", hint="--calib, --macs 0.5")
    scope = ("local" if ratio is not None else "global") if scope == "auto" else scope
    sequence, scores = ranked(
        model,
        coupling,
        criterion,
        aggregate,
        normalise,
        scope,
        align,
        keep,
        calib=calib,
        gradients=gradients,
        seed=seed,
    )
    if kind == "ratio":
        taken = allocate.by_ratio(sequence, amount)
    elif kind == "size":
        taken = allocate.by_cost(coupling, sequence, "bytes", amount, overhead=_overhead(model))
    else:
        taken = allocate.by_cost(coupling, sequence, measure, amount * Budget(coupling).of(measure, {}))
    return from_masks(coupling, allocate.chosen(coupling, taken), scores)


def by_curves(calib: Any, criterion: str | None, scope: str) -> bool:
    """Are levels chosen by measured error curves, rather than by one ranking?"""
    return calib is not None and criterion in (None, "obs") and scope in ("auto", "local")


def ranked(
    model: Model,
    coupling: Coupling,
    criterion: str | None,
    aggregate: str | None,
    normalise: str | None,
    scope: str,
    align: int,
    keep: Sequence[str],
    *,
    calib: Any = None,
    gradients: Any = None,
    seed: int = 0,
) -> tuple[Offers, dict[str, Any]]:
    """What may go in the order in which it does, and the scores behind that."""
    from spa import allocate
    from spa.importance.scores import scores
    from spa.importance.table import find
    from spa.importance.tensors import Statistics

    rule = find(criterion or "l2")
    moments = {}
    if rule.needs == "moments" and calib is not None:
        from spa.calibration import load
        from spa.sensitivity import moments_of

        moments = moments_of(coupling, load(calib, model, seed=seed))
    if rule.needs == "gradients" and gradients is not None:
        from spa.importance.gradient import load as load_gradients

        gradients = load_gradients(gradients, coupling)
    spared = matcher(keep, coupling)
    free = [g for g in coupling.groups if not spared(g)]
    found = scores(
        coupling,
        criterion or "l2",
        Statistics(moments, gradients or {}, seed),
        aggregate=aggregate,
        normalise="lamp" if scope == "lamp" else normalise,
        groups=free,
    )
    return allocate.offers(coupling, free, found, scope, align), found


def _overhead(model: Model) -> float:
    """Bytes of the written file that are not weights: the graph itself, names, metadata."""
    skeleton = model.ir.clone()
    total = 0
    for value in skeleton.graph.initializers.values():
        if value.const_value is not None:
            total += value.const_value.nbytes
            value.const_value = ir.Tensor(np.zeros(0, np.float32), name=value.name)
    return float(ir.to_proto(skeleton).ByteSize()) + 24 * len(skeleton.graph.initializers)


def from_masks(coupling: Coupling, masks: Chosen, scores: dict[str, Any] | None = None) -> Plan:
    """The plan that removes the given channels per group; shape constants are filled in when it is applied."""
    gone = coupling.removal(masks)
    groups = []
    for g in coupling.groups:
        mask = masks.get(g.id, np.zeros(g.size, bool))
        score = scores[g.id].round(6).tolist() if scores and g.id in scores else []
        members = [{"value": m.value, "axis": m.axis} for m in g.members]
        groups.append(
            {
                "id": g.id,
                "size": g.size,
                "removed": np.flatnonzero(mask).tolist(),
                "exact": g.exact,
                "members": members,
                "score": score,
            }
        )
    blocked = [
        {"group": b.group, "reason": b.reason.text, "node": b.reason.node, "op": b.reason.op, "axis": b.reason.axis}
        for b in coupling.blocked
    ]
    if not coupling.groups and not blocked:
        blocked.append(
            {
                "group": "",
                "reason": "the network has no weights whose channels could be removed",
                "node": "",
                "op": "",
                "axis": None,
            }
        )
    model = {"name": coupling.model.name, "sha256": coupling.model.sha256}
    return Plan(model, removed_slices(coupling, gone), groups, blocked)
