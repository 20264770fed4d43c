"""A coupling in words, in data and as a graph: what holds a group together, what blocks it, what would unblock it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import networkx as nx
import onnx_ir as ir

from spa.errors import UsageError

if TYPE_CHECKING:
    from spa.coupling.analysis import Blocked, Coupling, Group
    from spa.coupling.axes import Reason

LINES = 24  # members named one by one; the rest are counted


def explain(coupling: Coupling, name: str | None = None) -> str:
    """All groups in a line each, or everything about one group, weight, value or node.

    Raises `UsageError` where `name` is none of these."""
    if name is None:
        lines = [f"{len(coupling.groups)} groups of coupled channels can be pruned, {len(coupling.blocked)} are blocked"]
        lines += [f"  {g.id}: {g.size} channels over {len(g.members)} axes{'' if g.exact else ', approximately'}" for g in coupling.groups]
        lines += [f"  {b.group}: blocked, {b.reason}" for b in coupling.blocked]
        return "\n".join(lines)
    groups, blocked = find(coupling, name)
    return "\n\n".join([describe(coupling, g) for g in groups] + [describe_blocked(b) for b in blocked])


def as_data(coupling: Coupling, name: str | None = None) -> dict[str, Any]:
    groups, blocked = (coupling.groups, coupling.blocked) if name is None else find(coupling, name)
    return {
        "groups": [{"id": g.id, "size": g.size, "exact": g.exact, "members": [{"value": m.value, "axis": m.axis} for m in g.members], "nodes": path(coupling, g)} for g in groups],
        "blocked": [{"group": b.group, "reasons": [_reason(r) for r in b.reasons]} for b in blocked],
    }  # fmt: skip


def _reason(r: Reason) -> dict[str, Any]:
    return {"reason": r.text, "node": r.node, "op": r.op, "axis": r.axis, "approximate": r.approximate}


def find(coupling: Coupling, name: str) -> tuple[list[Group], list[Blocked]]:
    """Groups that are called so, run through a value so called, or touch a node so called."""
    values = {name} | {v.name or "" for o in coupling.ops if o.node.name == name for v in [*o.inputs, *o.outputs] if v is not None}
    groups = [g for g in coupling.groups if g.id == name or any(m.value in values for m in g.members)]
    blocked = [b for b in coupling.blocked if b.group == name or b.group.rpartition(":")[0] in values]
    if not groups and not blocked:
        raise UsageError(f"no group, weight, value or node with prunable channels is called '{name}'", hint="`spa explain MODEL` lists the groups")
    return groups, blocked


def path(coupling: Coupling, group: Group) -> list[str]:
    """The nodes that a group runs through, in order of execution."""
    values = {m.value for m in group.members}
    return [o.node.name or o.out.name or "" for o in coupling.ops if any(v is not None and v.name in values for v in [*o.inputs, *o.outputs])]


def describe(coupling: Coupling, group: Group) -> str:
    lines = [f"{group.id}: {group.size} channels, {'exact' if group.exact else 'approximate'}"]
    weights = [m for m in group.members if m.constant]
    lines.append(f"  each channel is a slice of {len(weights)} constants:")
    lines += [f"    {m.value}, axis {m.axis}" for m in weights[:LINES]]
    if len(weights) > LINES:
        lines.append(f"    and {len(weights) - LINES} more")
    kinds = {o.node.name or o.out.name or "": o.kind for o in coupling.ops}
    nodes = path(coupling, group)
    lines.append(f"  they are coupled through {len(nodes)} nodes ({', '.join(f'{n} {k}' for k, n in Counter(kinds[n] for n in nodes).most_common())}):")
    lines += [f"    {n} ({kinds[n]})" for n in nodes[:LINES]]
    if len(nodes) > LINES:
        lines.append(f"    and {len(nodes) - LINES} more")
    lines += [f"  only approximately: {r}" for r in dict.fromkeys(group.notes)]
    return "\n".join(lines)


def describe_blocked(blocked: Blocked) -> str:
    lines = [f"{blocked.group}: blocked"]
    lines += [f"  because: {r}" for r in blocked.reasons[:LINES]]
    if all(r.approximate for r in blocked.reasons):
        lines.append("  --allow-approximate would unblock it: the result is then close to the masked network, not equal")
    elif any("no rule" in r.text for r in blocked.reasons):
        lines.append("  a rule for that operator would unblock it (entry point spa.rules)")
    return "\n".join(lines)


def to_networkx(coupling: Coupling) -> nx.Graph:
    """See `Coupling.to_networkx`."""
    graph = nx.Graph()
    dims, axes = coupling.dims, coupling.axes

    def name(slot: Any) -> tuple[str, int]:
        value, axis = slot
        return (value.name or "", axis) if isinstance(value, ir.Value) else (f"factor of {slot!r}", 0)

    held = {d: [g.id for g in coupling.groups if d in g.labels] for d in range(len(dims.size))}
    for slot, n in axes.size.items():
        if n > 1:
            graph.add_node(name(slot), size=n, groups=held[dims.of[slot]], frozen=[str(r) for _, r in axes.frozen.get(slot, ())])
    for a, b, node in axes.sames:
        graph.add_edge(name(a), name(b), kind="same", node=node.name if node else "")
    for a, b, i, j, node in axes.links:
        graph.add_edge(name(a), name(b), kind="link", node=node.name if node else "", maps=(i, j))
    for f in axes.factors:
        for slot, stride, n in f.parts:
            graph.add_edge(name(f.merged), name(slot), kind="factor", stride=stride, size=n)
    return graph
