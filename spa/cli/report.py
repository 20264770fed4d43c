"""spa report: one page about one run."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from spa.cli.options import human, json_option, parse_shapes, refuse_existing, shape_option, sizes_of
from spa.errors import UsageError


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), help="The page [default: RUN.report.html].")
@click.option("--dense", type=click.Path(path_type=Path), help="The network before, to compare layers with.")
@click.option("--plan", type=click.Path(path_type=Path), help="The plan, where it is not in the bundle.")
@click.option("--bench", multiple=True, type=click.Path(path_type=Path), help="A document of `spa bench --json`.")
@click.option("--force", is_flag=True, help="Replace an existing page.")
@shape_option
@json_option
def report(
    run: Path,
    out: Path | None,
    dense: Path | None,
    plan: Path | None,
    bench: tuple[Path, ...],
    force: bool,
    shapes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write one HTML page about RUN: a bundle, the JSON of `spa prune --json`, or a model. With --json its data are also
    written beside it and to stdout."""
    named = run if run.name not in ("", "..") else run.resolve()
    stem = named.stem if run.suffix in (".onnx", ".json") else named.name
    place = out or named.with_name(f"{stem}.report.html")
    beside = place.with_name(f"{place.stem}.json")
    if place.suffix not in (".html", ".htm"):
        raise UsageError(f"a report is an HTML file, not {place.name}", hint="-o report.html")
    refuse_existing(place, force, run)
    if (
        as_json
        and beside.name in ("report.json", "plan.json", "manifest.json")
        and (place.parent / "manifest.json").exists()
    ):
        raise UsageError(f"{beside} belongs to the bundle", hint="another -o")
    if as_json:
        refuse_existing(beside, force, run)
    from spa.model import write_atomic
    from spa.report.gather import gather, twin
    from spa.report.page import html
    from spa.report.run import find

    found = find(run, dense=dense, plan=plan, bench=bench)
    fixed = parse_shapes(shapes)
    command = shlex.join(["spa", *sys.argv[1:]]) if Path(sys.argv[0]).stem in ("spa", "__main__") else ""
    gathered = gather(found, command, lambda model: sizes_of(model, fixed))
    page = html(gathered)
    if as_json:
        text = twin(gathered)
        write_atomic(beside, lambda p: p.write_text(text, encoding="utf-8"))
    write_atomic(place, lambda p: p.write_text(page, encoding="utf-8", errors="replace"))
    if as_json:
        click.echo(text, nl=False)
    else:
        click.echo(f"{place}  ({human(place.stat().st_size)}B)")
