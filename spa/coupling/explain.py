"""A coupling in words, in data and as a graph: what holds a group together, what blocks it, what would unblock it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import networkx as nx
import onnx_ir as ir

from spa.errors import UsageError

if TYPE_CHECKING:
    from spa.coupling.analysis import Blocked, Coupling, Group
    from spa.coupling.axes import Op, Reason, Slot

LINES = 16  # members and nodes named one by one; the rest are counted

# what an operator does to the channels that meet in it
TIES = {
    "adds them up": ("Add", "Sub", "Sum", "Mean", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "BiasAdd"),
    "compares them": ("Max", "Min", "Less", "Greater", "Equal", "Where"),
    "multiplies them with each other": ("Mul", "Div", "Pow", "MatMul", "FusedMatMul", "Gemm", "Einsum", "Conv"),
    "puts them side by side": ("Concat", "FeatureVectorizer"),
    "takes them apart": ("Split",),
    "sees factors in them, such as heads and their dimensions": ("Reshape", "Flatten", "DepthToSpace", "SpaceToDepth"),
    "takes heads of them": ("Attention", "MultiHeadAttention", "GroupQueryAttention"),
}  # fmt: skip
RESHAPES = ("Concat", "Split", "Reshape", "Flatten", "DepthToSpace", "SpaceToDepth")
TIE_OF = {kind: words for words, kinds in TIES.items() for kind in kinds}

# a part of a reason -> what would unblock it; the first that fits
REMEDIES = (
    ("input '", "nothing: what the network is fed keeps its size"),
    ("output '", "nothing: what the network returns keeps its size"),
    ("no rule for the operator", "a rule for that operator, from outside through the entry point spa.rules (examples/custom_rule)"),
    ("the shape of '", "shapes: fix the inputs with --shape NAME:1,3,224,224, or export with static shapes"),
    ("is dynamic", "a fixed size: --shape NAME:1,3,224,224"),
    ("depend on data", "constants there: export with static shapes, or run `spa prune` without --no-fold"),
    ("indexed by data", "nothing: any row may be asked for; a smaller vocabulary is another network"),
    ("mixed by a window", "nothing: these are positions, not channels"),
    ("positions", "nothing: these are positions, not channels"),
    ("share no factors", "a layout in which channels stay whole, such as heads * size instead of a mixture"),
    ("do not correspond", "nothing that is known: two axes are tied whose sizes differ"),
    ("is taken", "nothing: a part of the network names this very channel"),
)  # fmt: skip


def explain(coupling: Coupling, name: str | None = None) -> str:
    """All groups in a line each, or everything about one group, weight, value or node.

    Raises `UsageError` where `name` is none of these."""
    if name is None:
        return overview(coupling)
    groups, blocked = find(coupling, name)
    parts = [describe(coupling, g) for g in groups] + [describe_blocked(coupling, b) for b in blocked]
    if not parts:
        parts = [describe_slot(coupling, slot) for slot in slots_of(coupling, name)]
    return "\n\n".join(parts)


def overview(coupling: Coupling) -> str:
    groups, blocked = coupling.groups, coupling.blocked
    lines = [f"{plural(len(groups), 'group')} of coupled channels can be pruned, {len(blocked)} blocked"]
    width = max((len(g.id) for g in groups), default=0)
    for g in groups:
        constants = len({m.value for m in g.members if m.constant})
        how = "" if g.exact else ", approximately"
        lines.append(f"  {g.id:<{width}}  {g.size:>5} channels, slices of {plural(constants, 'constant')}{how}")
    because: dict[str, list[str]] = {}
    for b in blocked:
        because.setdefault(str(b.reason), []).append(b.group)
    for reason, names in because.items():
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        lines.append(f"  blocked: {', '.join(names[:4])}{more}: {reason}")
    return "\n".join(lines)


def as_data(coupling: Coupling, name: str | None = None) -> dict[str, Any]:
    groups, blocked = (coupling.groups, coupling.blocked) if name is None else find(coupling, name)
    return {
        "groups": [
            {
                "id": g.id,
                "size": g.size,
                "exact": g.exact,
                "members": [{"value": m.value, "axis": m.axis} for m in g.members],
                "nodes": [label(o) for o in path(coupling, g)],
            }
            for g in groups
        ],
        "blocked": [
            {"group": b.group, "reasons": [{**_reason(r), "remedy": remedy(r)} for r in b.reasons]} for b in blocked
        ],
    }


def _reason(r: Reason) -> dict[str, Any]:
    return {"reason": r.text, "node": r.node, "op": r.op, "axis": r.axis, "approximate": r.approximate}


def remedy(r: Reason) -> str:
    """What would unblock it."""
    if r.approximate:
        return "--allow-approximate: the result is then close to the masked network, not equal to it"
    return next((words for part, words in REMEDIES if part in r.text), "nothing that is known")


def find(coupling: Coupling, name: str) -> tuple[list[Group], list[Blocked]]:
    """Groups that are called so, run through a value so called, or touch a node so called. Both lists are empty for a
    value or node that no group touches."""
    groups = [g for g in coupling.groups if g.id == name]
    blocked = [b for b in coupling.blocked if b.group == name]
    if groups or blocked:
        return groups, blocked
    slots = set(slots_of(coupling, name))
    if not slots and not values_of(coupling, name):
        raise UsageError(
            f"no group, weight, value or node is called '{name}'", hint="`spa explain MODEL` lists the groups"
        )
    at = {(v.name or "", axis) for v, axis in slots if isinstance(v, ir.Value)}
    groups = [g for g in coupling.groups if any((m.value, m.axis) in at for m in g.members)]
    blocked = [b for b in coupling.blocked if base(b.group) in at]
    return groups, blocked


def values_of(coupling: Coupling, name: str) -> set[str]:
    """The values so called, or those that a node so called reads and writes."""
    touched = {v.name or "" for o in coupling.ops if label(o) == name for v in [*o.inputs, *o.outputs] if v is not None}
    return touched or {v.name or "" for v in coupling.shapes.shape if v.name == name}


def slots_of(coupling: Coupling, name: str) -> list[Slot]:
    """The axes of a value or of a node's operands; one axis where the name is `value:axis`."""
    values, axis = values_of(coupling, name), None
    if not values:
        value, axis = base(name)
        values = {value}
    found = [s for s in coupling.dims.of if isinstance(s[0], ir.Value) and s[0].name in values]
    return [s for s in found if axis is None or s[1] == axis]


def base(group: str) -> tuple[str, int]:
    """The weight and axis in the name of a group, `weight:axis` or `weight:axis#n`."""
    value, _, axis = group.rpartition(":")
    number = axis.partition("#")[0]
    return value, int(number) if number.isdigit() else 0


def label(op: Op) -> str:
    return op.node.name or (op.out.name or "" if op.outputs else "")


def path(coupling: Coupling, group: Group) -> list[Op]:
    """The nodes that a group runs through, in order of execution."""
    values = {m.value for m in group.members}
    return [o for o in coupling.ops if any(v is not None and v.name in values for v in [*o.inputs, *o.outputs])]


def plural(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def named(items: list[str]) -> list[str]:
    return items[:LINES] + ([f"    and {len(items) - LINES} more"] if len(items) > LINES else [])


def describe(coupling: Coupling, group: Group) -> str:
    lines = [f"{group.id}: {group.size} channels, {'exact' if group.exact else 'approximate'}"]
    nodes = path(coupling, group)
    lines.append("  each channel is a slice of")
    lines += named([f"    {text}" for text in slices(coupling, group, nodes)])
    counts = ", ".join(f"{n} {kind}" for kind, n in Counter(o.kind for o in nodes).most_common())
    lines.append(f"  it runs through {plural(len(nodes), 'node')}: {counts}")
    if met := list(ties(group, nodes)):
        lines += ["  it is tied together by", *named([f"    {text}" for text in met])]
    lines += [f"  only approximately: {r}" for r in dict.fromkeys(group.notes)]
    return "\n".join(lines)


def slices(coupling: Coupling, group: Group, nodes: list[Op]) -> Iterator[str]:
    """Node by node, of which of its constants a channel takes how much."""
    sliced: dict[ir.Value, list[tuple[int, float]]] = {}
    for d, labels in group.labels.items():
        each = int((labels >= 0).sum()) / group.size
        for value, axis in coupling.dims.slots[d]:
            if isinstance(value, ir.Value) and axis is not None and value in coupling.constants:
                sliced.setdefault(value, []).append((axis, each))
    for o in nodes:
        parts = []
        for v in dict.fromkeys(o.inputs):
            for axis, each in sliced.pop(v, []) if v is not None else []:
                count = "" if each == 1 else f" ({each:g} indices)"
                parts.append(f"{coupling.constants[v]} axis {axis}{count}")  # type: ignore[index]
        if parts:
            yield f"{o.kind} '{label(o)}': {', '.join(parts)}"


def ties(group: Group, nodes: list[Op]) -> Iterator[str]:
    """The nodes where channels of several values meet, in words."""
    constant = {m.value for m in group.members if m.constant}
    values = {m.value for m in group.members} - constant
    for o in nodes:
        met = list(dict.fromkeys(v.name or "" for v in o.inputs if v is not None and v.name in values))
        if len(met) > 1 or (met and o.kind in RESHAPES):
            yield f"{o.kind} '{label(o)}', which {TIE_OF.get(o.kind, 'reads them together')}: {', '.join(met[:4])}"


def describe_blocked(coupling: Coupling, blocked: Blocked) -> str:
    lines = [f"{blocked.group}: blocked"]
    by_text: dict[str, list[Reason]] = {}
    for r in blocked.reasons:
        by_text.setdefault(r.text, []).append(r)
    for text, reasons in by_text.items():
        where = ", ".join(f"{r.op} '{r.node}'" for r in reasons[:4] if r.op)
        more = f" and {len(reasons) - 4} more" if len(reasons) > 4 else ""
        lines.append(f"  because: {text}" + (f" ({where}{more})" if where else ""))
        lines.append(f"    what would unblock it: {remedy(reasons[0])}")
    start = slot_of(coupling, *base(blocked.group))
    way = chain(coupling, start, set(blocked.reasons)) if start is not None else []
    if len(way) > 1:
        lines.append("  the way there:")
        lines += named([f"    {text}" for text in way])
    return "\n".join(lines)


def describe_slot(coupling: Coupling, slot: Slot) -> str:
    """One axis that belongs to no group with parameters, or to none that can be removed."""
    value, axis = slot
    name = value.name if isinstance(value, ir.Value) else value
    way = chain(coupling, slot, None)
    if not way:
        return f"{name}, axis {axis}: tied to no weight"
    return "\n".join([f"{name}, axis {axis}: blocked; the way there:", *named([f"    {text}" for text in way])])


def slot_of(coupling: Coupling, name: str, axis: int) -> Slot | None:
    return next(iter(slots_of(coupling, f"{name}:{axis}")), None)


def neighbours(coupling: Coupling) -> dict[Slot, list[tuple[Slot, str]]]:
    """Every relation, both ways, with the node that states it."""
    axes = coupling.axes
    found: dict[Slot, list[tuple[Slot, str]]] = {}

    def tie(a: Slot, b: Slot, text: str) -> None:
        found.setdefault(a, []).append((b, text))
        found.setdefault(b, []).append((a, text))

    for a, b, node in axes.sames:
        tie(a, b, f"{node.op_type} '{node.name or node.outputs[0].name}'" if node else "")
    for a, b, _, _, node in axes.links:
        tie(a, b, f"{node.op_type} '{node.name or node.outputs[0].name}'" if node else "")
    for f in axes.factors:
        for part, _, _ in f.parts:
            tie(f.merged, part, "")
    return found


def chain(coupling: Coupling, start: Slot, reasons: Iterable[Reason] | None) -> list[str]:
    """The shortest way over stated relations from a slot to one that is frozen (for one of these reasons), in words."""
    wanted = None if reasons is None else set(reasons)
    near = neighbours(coupling)
    came: dict[Slot, tuple[Slot, str] | None] = {start: None}
    queue = deque([start])
    while queue:
        here = queue.popleft()
        why = [r for _, r in coupling.axes.frozen.get(here, ()) if wanted is None or r in wanted]
        if why:
            return _words(came, here, why[0])
        for other, text in near.get(here, ()):
            if other not in came:
                came[other] = (here, text)
                queue.append(other)
    return []


def _words(came: dict[Slot, tuple[Slot, str] | None], end: Slot, why: Reason) -> list[str]:
    steps: list[str] = []
    at: Slot | None = end
    while at is not None:
        value, axis = at
        before = came[at]
        by = f", through {before[1]}" if before and before[1] else ""
        if isinstance(value, ir.Value):
            steps.append(f"{value.name}, axis {axis}{by}")
        elif by:
            steps.append(f"a factor of it{by}")
        at = before[0] if before else None
    return [*reversed(steps), f"where it must stay: {why}"]


def to_networkx(coupling: Coupling) -> nx.Graph:
    """See `Coupling.to_networkx`."""
    graph = nx.Graph()
    dims, axes = coupling.dims, coupling.axes

    def name(slot: Any) -> tuple[str, int]:
        value, axis = slot
        return (value.name or "", axis) if isinstance(value, ir.Value) else (f"factor of {slot!r}", 0)

    held: dict[int, list[str]] = {}
    for g in coupling.groups:
        for d in g.labels:
            held.setdefault(d, []).append(g.id)
    for slot, n in axes.size.items():
        if n > 1:
            frozen = [str(r) for _, r in axes.frozen.get(slot, ())]
            graph.add_node(name(slot), size=n, groups=held.get(dims.of[slot], []), frozen=frozen)
    for a, b, node in axes.sames:
        graph.add_edge(name(a), name(b), kind="same", node=node.name if node else "")
    for a, b, i, j, node in axes.links:
        graph.add_edge(name(a), name(b), kind="link", node=node.name if node else "", maps=(i, j))
    for f in axes.factors:
        for slot, stride, n in f.parts:
            graph.add_edge(name(f.merged), name(slot), kind="factor", stride=stride, size=n)
    return graph
