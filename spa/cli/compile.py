"""spa compile"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from spa.cli.options import cuda_options, parse_shapes

SIZES = ("code_bytes", "weight_bytes", "arena_bytes", "peak_bytes")  # of the manifest


@click.command("compile")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--target",
    "targets",
    multiple=True,
    default=("host",),
    show_default=True,
    help="host, arm, wasm or cuda; may be repeated.",
)
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path),
    help="Folder of the bundle [default: MODEL.spa beside the model].",
)
@click.option("--shape", "shapes", multiple=True, metavar="NAME:1,3,224,224", help="Fix the shape of an input.")
@click.option(
    "--host-level", metavar="LEVEL", help="x86-64-v2, -v3 or -v4 for the host [default: what this machine has]."
)
@click.option(
    "--relaxed-simd", is_flag=True, help="wasm: fused multiply-adds; engines without relaxed SIMD refuse the module."
)
@click.option(
    "--wasm-threads", is_flag=True, help="wasm: a module whose memory workers share, for --threads of run and bench."
)
@cuda_options
@click.option("-n", "--dry-run", is_flag=True, help="Compile and say what comes of it; write nothing.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--no-cache", is_flag=True, help="Compile even if the same was compiled before.")
@click.option("--explain-kernels", is_flag=True, help="Print the kernel of every layer, and why it was chosen.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def compile(
    model: Path,
    targets: tuple[str, ...],
    out: Path | None,
    shapes: tuple[str, ...],
    host_level: str | None,
    relaxed_simd: bool,
    wasm_threads: bool,
    cuda_archs: str | None,
    precision: str | None,
    dry_run: bool,
    force: bool,
    no_cache: bool,
    explain_kernels: bool,
    as_json: bool,
) -> None:
    """Compile MODEL into a bundle: a library that stands alone for each target."""
    from spa.codegen import bundle as bundles

    begin = time.perf_counter()
    out = out or model.with_suffix(".spa")
    built = bundles.compile(
        model,
        targets,
        None if dry_run else out,
        parse_shapes(shapes),
        host_level,
        force=force,
        use_cache=not no_cache,
        cuda_archs=cuda_archs,
        precision=precision,
        relaxed_simd=relaxed_simd,
        wasm_threads=wasm_threads,
    )
    seconds = round(time.perf_counter() - begin, 3)
    rows = {
        name: {
            "path": str(out / name),
            "bytes": (built.path / name / facts["library"]).stat().st_size,
        }
        | {key: facts[key] for key in SIZES}
        for name, facts in built.manifest["targets"].items()
    }
    if explain_kernels and as_json:
        rows = {
            name: {**row, "kernels": built.manifest["targets"][name].get("kernels", [])} for name, row in rows.items()
        }
    elif explain_kernels:
        from spa.cli.explain_kernels import show_kernels

        show_kernels(built.manifest["targets"])
    if as_json:
        click.echo(
            json.dumps(
                {
                    "schema": 1,
                    "input": str(model),
                    "output": None if dry_run else str(out),
                    "targets": rows,
                    "seconds": seconds,
                }
            )
        )
        return
    from rich.table import Table

    from spa.cli.terminal import console, show

    table = Table("target", "library")
    for column in ("bytes", *(key.removesuffix("_bytes") for key in SIZES)):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        numbers = (f"{row[k]:,}" for k in ("bytes", *SIZES))
        table.add_row(name, built.manifest["targets"][name]["library"], *numbers)
    show(console(), table)
    click.echo(f"{'dry run: nothing was written' if dry_run else out}: {seconds:.1f} s", err=True)
