"""What `spa prune --pipeline` does: the passes of the text, alone or after a budget, each held to its promise."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from spa.errors import UsageError
from spa.recipe import BUDGETS

if TYPE_CHECKING:
    from rich.console import Console

    from spa.inputs import Feeds
    from spa.model import Model
    from spa.pipeline import Pipeline, Result

OTHERS = (*BUDGETS, "sparsity")


def parsed(options: dict[str, Any]) -> Pipeline | None:
    """The pipeline asked for, its names and options checked before any work."""
    if options["pipeline"] is None:
        return None
    from spa.pipeline import Pipeline

    pipeline = Pipeline.parse(options["pipeline"])
    if not pipeline.passes:
        raise UsageError("the pipeline is empty", hint="--pipeline fold; `spa passes` lists the passes")
    also = [k for k in OTHERS if options[k] is not None]
    if also and any(p.name == "slice" for p in pipeline.passes):
        raise UsageError(
            f"--{also[0].replace('_', '-')} and the pipeline's slice both choose channels",
            options["pipeline"],
            "slice{macs=0.5} in the pipeline, or the budget alone",
        )
    return pipeline


def alone(options: dict[str, Any]) -> bool:
    """Is the pipeline all there is to do?"""
    return options["pipeline"] is not None and all(options[k] is None for k in OTHERS)


def run(
    pipeline: Pipeline, so_far: Result, options: dict[str, Any], inputs: list[Feeds] | None, sizes: dict[str, int]
) -> Result:
    """The passes on the network there is. The plan is that of the pipeline, or of what went before with the passes noted;
    None where what the passes removed cannot be said of the input model."""
    from spa.proving import run as run_proven

    check = not options["no_verify"]
    found = run_proven(pipeline, so_far.model, check=check, seed=options["seed"], inputs=inputs, sizes=sizes)
    before = so_far.facts.get("verified")
    facts = {**so_far.facts, **found.facts, "verified": worse(before, found.facts["verified"])}
    cut = "slice" in {p.name for p in pipeline.passes}
    if cut and found.plan is None:
        click.echo("note: no plan is written: what several passes removed cannot be said of the input model", err=True)
    plan = found.plan if cut else so_far.plan
    if plan is not None and not cut:
        text = ",".join(filter(None, ["" if alone(options) else plan.pipeline, str(pipeline)]))
        plan = replace(plan, pipeline=text)
    return replace(found, plan=plan, facts=facts)


def worse(a: dict[str, Any] | None, b: dict[str, Any] | None) -> dict[str, Any] | None:
    if a is None or b is None:
        return a or b
    return max((a, b), key=lambda v: float(v["max_error"])) | {"inputs": min(a["inputs"], b["inputs"])}


def judged(network: Model, pruned: Model, calib: list[Feeds]) -> dict[str, Any]:
    """The JSON's "drift" of a network that passes changed: on all calibration inputs, nothing is held back."""
    from spa.judging import judge

    return judge(network, pruned, calib).to_json()


def show(console: Console, rows: list[dict[str, Any]]) -> None:
    from spa.cli.terminal import say

    for row in rows:
        error = row["error"]
        if row["exact"]:
            said = "unchecked" if error is None else f"exact, error {error:.1e}"
        else:
            said = "other outputs, or unchecked" if error is None else f"outputs change by {error:.2%}"
        say(console, f"{row['pass']}: {said}")
