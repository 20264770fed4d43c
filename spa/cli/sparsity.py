"""What `spa prune --sparsity` does after channels are gone: thin out what is left, and say so."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from spa.inputs import Feeds
    from spa.model import Model
    from spa.pipeline import Result
    from spa.planning import Plan


def thinned(
    model: Model,
    result: Result,
    replay: dict[str, str],
    calib: list[Feeds] | None,
    inputs: list[Feeds] | None,
    sizes: dict[str, int],
    options: dict[str, Any],
) -> Result:
    """`result` with thin layers: as `--sparsity` asks, or each as a plan has it (`replay`).

    The network differs from the dense one by intent, so there is no comparison: every layer is held against its
    pattern, and unless `--no-verify` the network is run. Raises `CheckFailed` where either fails."""
    from spa.errors import CheckFailed
    from spa.verification import Session, feeds_for

    found = thin_out(result.model, replay, calib, options, None if options["no_verify"] else (inputs, sizes))
    facts = found.facts["sparsity"] | ({"rearranged": found.facts["rearranged"]} if "rearranged" in found.facts else {})
    if not options["no_verify"]:
        feeds = feeds_for(Session(model), model, 1, options["seed"], inputs, sizes)
        try:
            Session(found.model).run(feeds[0])
        except Exception as error:  # onnxruntime's errors share no type
            raise CheckFailed(f"the thin network does not run: {str(error).splitlines()[0][:300]}") from None
    plan = result.plan
    if plan is not None:
        patterns = {layer["weight"]: layer["pattern"] for layer in facts["layers"]}
        steps = ["rearrange"] * bool(facts.get("rearranged")) + ["sparsify"]
        plan = replace(plan, pipeline=",".join([plan.pipeline, *steps]), sparsity=patterns)
    return replace(found, plan=plan, facts={**result.facts, "sparsity": facts})


def thin_out(
    model: Model,
    replay: dict[str, str],
    calib: list[Feeds] | None,
    options: dict[str, Any],
    prove: tuple[list[Feeds] | None, dict[str, int]] | None = None,
) -> Result:
    """Thin, and before that, unless `--no-rearrange`, the channels in the order in which the patterns lose least; that
    the order changes nothing is proven on the inputs, or with the sizes, of `prove`."""
    from spa.passes.rearrange import rearrange
    from spa.passes.sparsify import replayed, sparsify

    which: dict[str, Any] = {"calib": calib, "layers": replayed(replay), "dense": options["dense"]}
    facts: dict[str, Any] = {}
    if not options["no_rearrange"]:
        inputs, sizes = prove or (None, None)
        proof: dict[str, Any] = {"check": prove is not None, "inputs": inputs, "sizes": sizes}
        moved = rearrange(model, options["sparsity"], seed=options["seed"], **which, **proof)
        model, facts = moved.model, moved.facts
    found = sparsify(model, options["sparsity"], refit=not options["no_compensate"], **which)
    return replace(found, facts={**facts, **found.facts})


def judge_thin(
    model: Model,
    decided: Plan,
    replay: dict[str, str],
    calib: list[Feeds],
    sizes: dict[str, int],
    options: dict[str, Any],
) -> dict[str, Any]:
    """The JSON's "drift", of a twin that was cut and thinned out without the inputs held back (`spa.judging.judge_plan`)."""
    from spa.judging import fitted, held_back, judge
    from spa.pruning import finish

    held, first, apart = held_back(calib)
    rest = fitted(calib) if apart else calib
    mend = None if options["no_compensate"] else rest
    cut = finish(model, decided, calib=mend, check=False, sizes=sizes, fold=not options["no_fold"]).model
    twin = thin_out(cut, replay, rest, options).model
    return judge(model, twin, held, first=first, held=apart).to_json()


def show(console: Console, facts: dict[str, Any]) -> None:
    reasons: dict[str, int] = {}
    for s in facts["spared"]:
        reasons[s["reason"]] = reasons.get(s["reason"], 0) + 1
    kept = f"{facts['nonzeros']:,} of {facts['weights']:,} weights left ({facts['density']:.1%})"
    console.print(
        f"{len(facts['layers'])} layers thinned out to {facts['pattern'] or 'their patterns'}: {kept}, patterns checked",
        highlight=False,
    )
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
