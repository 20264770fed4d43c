"""What `spa prune` says about the pruned network's answers: the judgement on held-back inputs, and the user's metric."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from spa.errors import UsageError

if TYPE_CHECKING:
    from spa.coupling import Coupling
    from spa.drift import Trial
    from spa.inputs import Feeds
    from spa.metric import Metric
    from spa.model import Model
    from spa.planning import Plan


def metric_of(options: dict[str, Any]) -> Metric | None:
    """The function that --eval names, imported before any work."""
    if options["evaluate"] is None:
        if options["keep_accuracy"] is not None:
            raise UsageError("--keep-accuracy needs a metric to keep", hint="--eval module:function")
        return None
    from spa.metric import as_metric

    return as_metric(options["evaluate"])


def keep_metric(
    network: Model,
    coupling: Coupling,
    metric: Metric,
    loss: float,
    calib: list[Feeds] | None,
    **choice: Any,
) -> tuple[Plan, dict[str, Any]]:
    """`plan_by_metric`, every trial told on stderr."""
    from spa.drift import plan_by_metric

    if not calib:
        click.echo(
            "note: without --calib nothing is mended, and accuracy falls early; a few hundred inputs help", err=True
        )

    def tell(trial: Trial) -> None:
        verdict = "kept" if trial.fits else "lost"
        click.echo(f"{trial.macs:.1%} of the MACs: {metric.name} {number(trial.value)}, {verdict}", err=True)

    plan, facts = plan_by_metric(network, coupling, metric, loss, feeds=calib, tell=tell, **choice)
    return plan, {"metric": facts}


def drift_of(
    network: Model,
    pruned: Model,
    decided: Plan,
    calib: list[Feeds] | None,
    known: dict[str, Any],
    metric: Metric | None,
    before: float | None,
    stage: Callable[[str], Any],
    **how: Any,
) -> dict[str, Any]:
    """The JSON's "drift": what the budget measured (`known`), the judgement where there is calibration data (`how`: as in
    `judge_plan`), the metric."""
    found: dict[str, Any] = {}
    if calib:
        from spa.judging import judge_plan

        stage("judging")
        found = judge_plan(network, decided, calib, **how).to_json()
    found |= known
    if metric is not None and "metric" not in found:
        stage("evaluating")
        after = metric(pruned)
        found["metric"] = {"name": metric.name, "before": before, "after": after if math.isfinite(after) else None}
    return found


def lines(drift: dict[str, Any]) -> list[str]:
    """For people."""
    from spa.judging import line

    found = [line(drift)] if "value" in drift else []
    if metric := drift.get("metric"):
        wanted = f", at least {number(metric['before'] - metric['keep'])} wanted" if "keep" in metric else ""
        found.append(f"{metric['name']}: {number(metric['before'])} before, {number(metric['after'])} after{wanted}")
    return found


def number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.4g}"
