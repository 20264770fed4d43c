"""spa verify: compare two networks on random or given inputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from spa.cli.options import json_option, parse_shapes, print_json, shape_option, sizes_of

if TYPE_CHECKING:
    from spa.model import Model


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(path_type=Path),
    help="Mask A by this plan first: is B really A without these channels?",
)
@click.option("--inputs", type=click.Path(path_type=Path), help="Inputs to compare on (.npz).")
@click.option("--count", type=click.IntRange(1), default=4, show_default=True, help="Random inputs to compare on.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--calib", help="Judge B by A on these inputs instead: FILE.npz, .npy or synthetic (see spa prune).")
@click.option("--max-drift", type=float, help="With --calib: exit 1 where the drift is above this.")
@shape_option
@json_option
def verify(
    a: Path,
    b: Path,
    plan_file: Path | None,
    inputs: Path | None,
    count: int,
    seed: int,
    calib: str | None,
    max_drift: float | None,
    shapes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compare the outputs of networks A and B, graph optimisations off; exit 1 where they differ.

    With --calib they may differ: how far B drifts from A, how often its answers stay, which classes and inputs change."""
    from spa.inputs import load as load_inputs
    from spa.model import load
    from spa.planning import Plan
    from spa.verification import verify as compare

    dense, other = load(a), load(b)
    if max_drift is not None and not calib:
        raise click.UsageError("--max-drift needs --calib")
    if calib:
        if plan_file or inputs:
            raise click.UsageError("--calib judges A against B alone, on its own inputs: without --plan and --inputs")
        judged(dense, other, calib, max_drift, sizes_of(dense, parse_shapes(shapes)), seed, as_json)
        return
    plan = Plan.load(plan_file) if plan_file else None
    given = load_inputs(inputs, dense) if inputs else None
    result = compare(
        dense, other, plan, count=count, seed=seed, inputs=given, sizes=sizes_of(dense, parse_shapes(shapes))
    )
    if as_json:
        print_json({"schema": 1, **result.to_json()})
    else:
        word = "equal" if result.ok else "DIFFERENT"
        click.echo(
            f"{word}: error {result.max_error:.3g} of the outputs' spread ({result.tolerance:g} allowed), {result.inputs} inputs"
        )
        if result.where:
            click.echo(f"first difference: {result.where}")
    if not result.ok:
        click.get_current_context().exit(1)


def judged(
    dense: Model, other: Model, calib: str, limit: float | None, sizes: dict[str, int], seed: int, as_json: bool
) -> None:
    from spa.calibration import load as load_calibration
    from spa.judging import judge

    judgement = judge(dense, other, load_calibration(calib, dense, sizes=sizes, seed=seed))
    ok = limit is None or judgement.error <= limit
    if as_json:
        print_json({"schema": 1, "ok": ok, "limit": limit, "drift": judgement.to_json()})
    else:
        click.echo(str(judgement) + ("" if limit is None else f" ({limit:g} allowed)"))
        for lost in (judgement.scores.forgotten if judgement.scores else ())[:5]:
            share = f"{lost.rate:.0%}, between {lost.low:.0%} and {lost.high:.0%}"
            click.echo(f"class {lost.label}: {lost.changed} of {lost.count} answers change ({share})")
        for e in (judgement.scores.exemplars if judgement.scores else ())[:5]:
            where = f"input {e.input}" + (f", position {e.position}" if e.position else "")
            click.echo(f"{where}: {e.was} becomes {e.now}, margin {e.margin_before:.2f} to {e.margin_after:.2f}")
    if not ok:
        click.get_current_context().exit(1)
