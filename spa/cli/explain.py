"""spa explain: why a group can or cannot be pruned."""

from __future__ import annotations

from pathlib import Path

import click

from spa.cli.options import json_option, parse_shapes, print_json, refuse_existing, shape_option, sizes_of


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("name", required=False)
@click.option(
    "--svg", type=click.Path(path_type=Path), metavar="FILE", help="Draw the neighbourhood of the group NAME."
)
@click.option("--bisect", "bisecting", is_flag=True, help="Find the groups whose pruning fails verification.")
@click.option("--ratio", default=0.5, show_default=True, help="With --bisect: share of channels to remove.")
@click.option("--seed", default=0, show_default=True, help="With --bisect: seed of the inputs.")
@click.option("--force", is_flag=True, help="Replace an existing picture.")
@shape_option
@json_option
def explain(
    model: Path,
    name: str | None,
    svg: Path | None,
    bisecting: bool,
    ratio: float,
    seed: int,
    force: bool,
    shapes: tuple[str, ...],
    as_json: bool,
) -> int:
    """Say what couples the channels of MODEL, and what blocks them; NAME is a group, weight, value or node."""
    from spa.coupling import analyze
    from spa.coupling.explain import as_data
    from spa.errors import UsageError
    from spa.model import load

    if svg is not None:
        if name is None:
            raise UsageError(
                "a picture shows one group",
                hint="spa explain MODEL NAME --svg FILE; `spa explain MODEL` lists the groups",
            )
        refuse_existing(svg, force)
    network = load(model)
    sizes = sizes_of(network, parse_shapes(shapes))
    coupling = analyze(network, sizes=sizes)
    if bisecting:
        from spa.bisection import bisect

        fault = bisect(network, coupling, ratio=ratio, seed=seed, sizes=sizes)
        if as_json:
            print_json({"schema": 1, **fault.to_json()})
        else:
            click.echo(str(fault))
        return 1 if fault.groups else 0
    if as_json:
        print_json({"schema": 1, **as_data(coupling, name)})
    else:
        click.echo(coupling.explain(name))
    if svg is not None and name is not None:
        from spa.coupling.explain import find
        from spa.coupling.picture import write_svg

        groups = find(coupling, name)[0]
        if not groups:
            raise UsageError(
                f"no group that can be pruned runs through '{name}'", hint="`spa explain MODEL` lists the groups"
            )
        write_svg(coupling, groups[0], svg)
    return 0
