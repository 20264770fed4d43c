"""spa verify: compare two networks on random or given inputs."""

from __future__ import annotations

from pathlib import Path

import click

from spa.cli.options import json_option, parse_shapes, print_json, shape_option, sizes_of


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
@shape_option
@json_option
def verify(
    a: Path,
    b: Path,
    plan_file: Path | None,
    inputs: Path | None,
    count: int,
    seed: int,
    shapes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compare the outputs of networks A and B, graph optimisations off; exit 1 where they differ."""
    from spa.inputs import load as load_inputs
    from spa.model import load
    from spa.planning import Plan
    from spa.verification import verify as compare

    dense, other = load(a), load(b)
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
