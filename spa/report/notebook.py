"""What a notebook shows of a Cost, a Coupling, a Plan or a Result: small tables, escaped like the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spa.report.page import environment, share, short, si

if TYPE_CHECKING:
    from spa.cost import Cost
    from spa.coupling import Coupling
    from spa.pipeline import Result
    from spa.planning import Plan

ROWS = 20  # of a table; the rest is counted


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "", left: int = 1) -> str:
    """HTML; the first `left` columns hold names."""
    return (
        environment()
        .get_template("notebook.html")
        .render(title=title, head=head, rows=rows[:ROWS], more=len(rows) - ROWS, note=note, left=left)
    )


def cost(found: Cost) -> str:
    """The layers that take most, by bytes."""
    layers = sorted(found.layers, key=lambda layer: -layer.bytes)
    rows = [
        (layer.name, layer.op, "×".join(map(str, layer.shape)), si(layer.params), si(layer.macs), si(layer.bytes, "B"))
        for layer in layers
    ]
    title = (
        f"{si(found.params)} parameters, {si(found.macs)} multiply-accumulates, {si(found.bytes, 'B')}, "
        f"{si(found.peak_activation_bytes, 'B')} of activations at the peak"
    )
    return table(title, ("layer", "operator", "output", "parameters", "MACs", "bytes"), rows, left=3)


def coupling(found: Coupling) -> str:
    """Groups, largest first, and what blocks the others."""
    groups = sorted(found.groups, key=lambda g: -g.size)
    rows = [(g.id, "" if g.exact else "approximate", g.size, len(g.members)) for g in groups]
    title = f"{len(rows)} groups of coupled channels, {len(found.blocked)} blocked"
    return table(title, ("group", "", "channels", "coupled axes"), rows, left=2) + blocked(
        [(b.group, str(b.reason)) for b in found.blocked]
    )


def plan(found: Plan) -> str:
    """What goes, per group."""
    rows = [
        (g["id"], g["size"], len(g["removed"]), share(g["size"] - len(g["removed"]), g["size"])) for g in found.groups
    ]
    gone, size = sum(r[2] for r in rows), sum(r[1] for r in rows)
    title = f"{gone:,} of {size:,} channels go, from {sum(r[2] > 0 for r in rows)} of {len(rows)} groups"
    head = ("group", "channels", "removed", "kept")
    return table(title, head, rows, note=f"passes: {found.pipeline}") + blocked(
        [(b.get("group", ""), b.get("reason", "")) for b in found.blocked]
    )


def blocked(rows: Sequence[tuple[str, str]]) -> str:
    return table(f"{len(rows)} blocked", ("group", "reason"), rows, left=2) if rows else ""


def result(found: Result) -> str:
    """What is left, whether it was proved, and the plan."""
    from spa.cost import inspect

    left = inspect(found.model)
    verified = found.facts.get("verified")
    proof = (
        f"equal to the masked network on {verified['inputs']} inputs, error {short(verified['max_error'])}"
        if verified
        else "not verified"
    )
    rows = [
        ("parameters", si(left.params)),
        ("multiply-accumulates", si(left.macs)),
        ("constants", si(left.bytes, "B")),
    ]
    head = table(found.model.name, ("left", ""), rows, note=proof)
    return head + (plan(found.plan) if found.plan is not None else "")
