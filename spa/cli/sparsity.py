"""What `spa prune --sparsity` does after channels are gone: thin out what is left, and say so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spa.cli.options import human

if TYPE_CHECKING:
    from rich.console import Console

    from spa.thinning import Thinning


def thinning(options: dict[str, Any], layers: dict[str, str]) -> Thinning:
    """What the options ask for; `layers`: each as a plan has it."""
    from spa.thinning import Thinning

    auto = options["sparsity"] == "auto"
    return Thinning(
        None if auto else options["sparsity"],
        layers if auto or not options["sparsity"] else {},
        tuple(options["dense"]),
        rules=tuple(options["layers"]),
        rearranged=not options["no_rearrange"],
        refit=not options["no_compensate"],
        seed=options["seed"],
        targets=options["targets"],
    )


def show(console: Console, facts: dict[str, Any]) -> None:
    reasons: dict[str, int] = {}
    for s in facts["spared"]:
        reasons[s["reason"]] = reasons.get(s["reason"], 0) + 1
    kept = f"{facts['nonzeros']:,} of {facts['weights']:,} weights left ({facts['density']:.1%})"
    console.print(
        f"{len(facts['layers'])} layers thinned out to {facts['pattern'] or 'their patterns'}: {kept}, patterns checked",
        highlight=False,
    )
    if "effective_macs" in facts:
        console.print(f"as fast as {human(facts['effective_macs'])} dense multiply-accumulates, by the target's table")
    moved = [g for g in facts.get("rearranged", []) if g["rearranged"] > g["kept"]]
    if moved:
        before, after = (sum(g[k] for g in facts["rearranged"]) for k in ("kept", "rearranged"))
        console.print(
            f"channels of {len(moved)} groups in another order: {after / before - 1:.1%} more kept of what weights are worth",
            highlight=False,
        )
    if reasons:
        spared = ", ".join(f"{n} ({r})" for r, n in reasons.items())
        console.print(f"{len(facts['spared'])} layers spared: {spared}", markup=False, highlight=False)
