"""`spa bench --calibrate`: the cost table of this machine, or of a board."""

from __future__ import annotations

import json

import click

from spa.errors import Unsupported


def calibrate(target: str, on: str | None, as_json: bool) -> None:
    """Time the probes of a target's instruction set, here or where the command `on` leads, fit the numbers by which kernels
    are chosen, and keep them."""
    from spa.cli.bench import machine
    from spa.codegen import calibration
    from spa.codegen.kernels.isa import shipped_isa
    from spa.codegen.probes import fit, measure
    from spa.codegen.target import resolve
    from spa.runtime.toolchain import runs_here

    resolved = resolve(target)
    if target == "cuda":
        raise Unsupported(
            "its kernels are chosen by a model of each GPU", "--target cuda", "--target host, arm or wasm"
        )
    if on is None and not (resolved.is_wasm or runs_here(resolved.triple, resolved.cpu)):
        hint = "--on 'ssh BOARD', or run it on such a machine"
        raise Unsupported("its kernels do not run on this machine", f"--target {target}", hint)
    if on is not None and "qemu" in on:
        click.echo("emulation says nothing about time: delete what is written now before you compile", err=True)
    isa = shipped_isa(resolved)
    times = measure(resolved, on)
    found, where = fit(isa, times.steps), times.elsewhere or machine()
    path = calibration.write(isa.name, found.cycles, where)
    if as_json:
        numbers = {"isa": isa.name, "cycles": found.cycles, "error": found.error, "error_before": found.before}
        click.echo(json.dumps({"schema": 1, "target": target, "machine": where, "path": str(path), **numbers}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(isa.name, "shipped", where)
    for name, value in found.cycles.items():
        table.add_row(name, f"{getattr(isa, name):.2f}", f"{value:.2f}")
    table.add_row("told times are off by", f"{found.before:.0%}", f"{found.error:.0%}")
    Console().print(table)
    click.echo(f"{path}: compilations for {isa.name} choose by it now; delete it to go back", err=True)
