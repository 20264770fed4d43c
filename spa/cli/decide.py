"""What `spa prune` decides by: the calibration inputs, the budget, and what comes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from spa.cli.options import parse_bytes

if TYPE_CHECKING:
    from spa.metric import Metric
    from spa.model import Model


def calibration(network: Model, sizes: dict[str, int], options: dict[str, Any]) -> list[Any] | None:
    if options["calib"] in (None, "weights"):
        return None
    import warnings

    from spa.calibration import load

    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        loaded = load(options["calib"], network, sizes=sizes, seed=options["seed"])
    for note in notes:
        click.echo(f"note: {note.message}", err=True)
    return loaded


def budget_of(options: dict[str, Any]) -> dict[str, Any]:
    """The one budget, by name; none where none was named."""
    from spa.recipe import BUDGETS

    budget = {k: options[k] for k in BUDGETS if k != "apply_plan" and options[k] is not None}
    if len(budget) > 1:
        raise click.UsageError(f"one budget at a time: {', '.join('--' + k.replace('_', '-') for k in budget)}")
    return budget | ({"size": parse_bytes(options["size"])} if "size" in budget else {})


def decide(
    network: Model,
    sizes: dict[str, int],
    options: dict[str, Any],
    calib: list[Any] | None,
    metric: Metric | None,
    stage: Any,
) -> tuple[Any, Any, dict[str, Any]]:
    """The plan: replayed, by budget, by drift, or by metric."""
    from spa.coupling import analyze
    from spa.planning import Plan, plan

    coupling = analyze(network, sizes=sizes, allow_approximate=options["allow_approximate"])
    if options["apply_plan"]:
        return Plan.load(options["apply_plan"]), coupling, {}
    choice: dict[str, Any] = {k: options[k] for k in ("criterion", "aggregate", "normalise", "scope", "keep")} | {
        "align": alignment(options)
    }
    budget = budget_of(options)
    stage("planning")
    auto = options["sparsity"] == "auto"
    if auto:
        choice |= {"sparsity": "auto", "targets": options["targets"], "dense": options["dense"]}
    thin = not auto and (options["sparsity"] or options["layers"])
    if (thin or options["pipeline"]) and not budget:
        from spa.planning import from_masks

        return from_masks(coupling, {}), coupling, {}
    if not budget or "max_drift" in budget or "keep_accuracy" in budget:
        from spa.cli.judged import keep_metric
        from spa.drift import MAX_DRIFT, plan_by_drift

        choice |= {
            "seed": options["seed"],
            "sizes": sizes,
            "repair": not options["no_compensate"],
            "fold": not options["no_fold"],
        }
        if metric is not None and "keep_accuracy" in budget:
            decided, drift = keep_metric(network, coupling, metric, budget["keep_accuracy"], calib, **choice)
        else:
            limit = budget.get("max_drift", MAX_DRIFT)
            decided, drift = plan_by_drift(network, coupling, limit, feeds=calib, **choice)
        return decided, coupling, {"drift": drift}
    extra = {k: options[k] for k in ("cost_table", "gradients", "seed", "refine")}
    return plan(network, coupling, calib=calib, **budget, **choice, **extra), coupling, {}


# vector widths in float32 lanes: multiples leave no remainder loop in the kernels
WIDTHS = {"host": 8, "arm": 4, "wasm": 4, "cuda": 8}


def alignment(options: dict[str, Any]) -> int:
    return options["align"] or max(map(width, options["targets"]), default=1)


def width(target: str) -> int:
    from spa.codegen.target import resolve

    return WIDTHS.get(target) or resolve(target).lanes


def doubts(repairs: list[dict[str, Any]]) -> list[str]:
    """What is to be said of fits to too little."""
    few = [r for r in repairs if r.get("samples", 0) < r.get("features", 0)]
    if not few:
        return []
    worst = min(few, key=lambda r: float(r["samples"] / r["features"]))
    return [
        f"{len(few)} of {len(repairs)} readers were mended on fewer samples than they have inputs ('{worst['reader']}': "
        f"{worst['samples']} for {worst['features']}); more calibration inputs would help"
    ]
