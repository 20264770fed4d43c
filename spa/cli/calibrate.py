"""`spa bench --calibrate`: the cost table of this machine."""

from __future__ import annotations

import json

import click

from spa.errors import Unsupported


def calibrate(target: str, as_json: bool) -> None:
    """Time the probes of a target's instruction set, fit the numbers by which kernels are chosen, and keep them."""
    from spa.cli.bench import machine
    from spa.codegen import calibration
    from spa.codegen.kernels.isa import shipped_isa
    from spa.codegen.probes import fit, measure
    from spa.codegen.target import resolve
    from spa.runtime.toolchain import runs_here

    resolved = resolve(target)
    if target not in ("host", "arm", "wasm") or not (resolved.is_wasm or runs_here(resolved.triple, resolved.cpu)):
        raise Unsupported("its kernels do not run on this machine", f"--target {target}", "run it on such a machine")
    isa = shipped_isa(resolved)
    found = fit(isa, measure(resolved))
    path = calibration.write(isa.name, found.cycles, machine())
    if as_json:
        numbers = {"isa": isa.name, "cycles": found.cycles, "error": found.error, "error_before": found.before}
        click.echo(json.dumps({"schema": 1, "target": target, "machine": machine(), "path": str(path), **numbers}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(isa.name, "shipped", "here")
    for name, value in found.cycles.items():
        table.add_row(name, f"{getattr(isa, name):.2f}", f"{value:.2f}")
    table.add_row("told times are off by", f"{found.before:.0%}", f"{found.error:.0%}")
    Console().print(table)
    click.echo(f"{path}: compilations for {isa.name} choose by it now; delete it to go back", err=True)
