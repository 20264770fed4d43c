"""spa bench"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spa.errors import UsageError

if TYPE_CHECKING:
    from spa.codegen.bundle import Bundle
    from spa.runtime.bench import Step, Timing
    from spa.runtime.engine import Engine


@click.command("bench")
@click.argument("subjects", nargs=-1, type=click.Path(path_type=Path), metavar="BUNDLE|MODEL...")
@click.option("--target", default="host", show_default=True, help="host or wasm; arm on an aarch64 machine.")
@click.option("--engine", type=click.Choice(["native", "wasmtime", "node", "chromium"]), help="What runs it.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Of ours and of theirs.")
@click.option("--against", metavar="onnxruntime|onnxruntime-web|BUNDLE|MODEL", help="Whom to run in turn with it.")
@click.option("--shape", "shapes", multiple=True, metavar="NAME:1,3,224,224", help="Fix the shape of a model's input.")
@click.option("--runs", type=click.IntRange(1), help="Exactly so many runs [default: about 3 seconds].")
@click.option(
    "--profile", "profiled", is_flag=True, help="Time every layer, and compare it with what the machine can do."
)
@click.option(
    "--calibrate", "calibrated", is_flag=True, help="Measure what kernels cost here; later compilations choose by it."
)
@click.option("--on", metavar="COMMAND", help="Calibrate another machine: 'ssh BOARD'; nothing is installed there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def bench(
    subjects: tuple[Path, ...],
    target: str,
    engine: str | None,
    threads: int,
    against: str | None,
    shapes: tuple[str, ...],
    runs: int | None,
    profiled: bool,
    calibrated: bool,
    on: str | None,
    as_json: bool,
) -> None:
    """Time bundles and models, in turn with others: medians and the ratio theirs / ours."""
    from spa.runtime.bench import SETTLED, measure

    if calibrated:
        from spa.cli.calibrate import calibrate

        if subjects:
            raise UsageError("--calibrate measures the machine, not a network", hint="spa bench --calibrate --target T")
        calibrate(target, on, as_json)
        return
    if on is not None:
        raise UsageError("--on is for --calibrate", hint="spa bench --calibrate --target arm --on 'ssh BOARD'")
    if not subjects:
        raise UsageError("nothing to time", hint="spa bench MODEL --target T")

    engine = _engine_for(engine, against, target)
    _warn_of_few_cores(threads)
    results = []
    for subject in subjects:
        bundle = _bundle(subject, target, shapes, threads)
        ours = _open(bundle, target, engine, threads)
        try:
            theirs, close = _opponent(against, bundle, target, engine, shapes, threads, ours)
            try:
                timing = measure(ours.step, theirs, runs=runs, pause=SETTLED if theirs and threads > 1 else 0.0)
            finally:
                close()
            row = _result(subject, target, threads, against, timing)
            row |= {"peak_bytes": _peak_bytes(bundle.manifest["targets"][target], threads)}
            if profiled:
                row |= _profile(bundle, target, engine, ours, threads)
        finally:
            ours.close()
        results.append(row)
    if as_json:
        click.echo(json.dumps(results[0] if len(results) == 1 else results))
        return
    _print(results)


def _engine_for(engine: str | None, against: str | None, target: str) -> str | None:
    """onnxruntime-web is compared in the engine that runs it."""
    if against != "onnxruntime-web":
        return engine
    if target != "wasm":
        raise UsageError("onnxruntime-web runs wasm", f"--target {target}", "--target wasm, or --against onnxruntime")
    if engine not in (None, "node", "chromium"):
        raise UsageError(f"onnxruntime-web does not run in {engine}", hint="--engine node or --engine chromium")
    return engine or "node"


def _warn_of_few_cores(threads: int) -> None:
    import os

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads > cores:
        click.echo(f"{threads} threads on {cores} cores: they will wait for each other", err=True)


def _bundle(subject: Path, target: str, shapes: tuple[str, ...], threads: int) -> Bundle:
    from spa.cli.options import parse_shapes
    from spa.codegen.bundle import Bundle, compile

    if subject.is_dir():
        return Bundle.load(subject)
    return compile(subject, target, shapes=parse_shapes(shapes), wasm_threads=threads > 1)


def _feeds(bundle: Bundle) -> dict[str, Any]:
    """Time does not depend on values, except where they index a table: zeros are always within."""
    import numpy as np

    random = np.random.default_rng(0)
    feeds = {}
    for row in bundle.manifest["inputs"]:
        shape, dtype = tuple(row["shape"]), np.dtype(row["dtype"])
        feeds[row["name"]] = (
            random.standard_normal(shape).astype(dtype) if dtype.kind == "f" else np.zeros(shape, dtype)
        )
    return feeds


def _open(bundle: Bundle, target: str, engine: str | None, threads: int, beside: Engine | None = None) -> Engine:
    from spa.runtime.library import Qemu
    from spa.runtime.load import target_of
    from spa.runtime.run import open_engine

    running = open_engine(target_of(bundle.path, target), engine, threads, beside)
    if isinstance(running, Qemu):
        running.step()  # raises: emulation says nothing about time
    try:
        running.run(_feeds(bundle))
    except BaseException:
        running.close()
        raise
    return running


def _opponent(
    against: str | None,
    bundle: Bundle,
    target: str,
    engine: str | None,
    shapes: tuple[str, ...],
    threads: int,
    ours: Engine,
) -> tuple[Step | None, Callable[[], None]]:
    from spa.runtime.opponents import onnxruntime_step, web

    if against is None:
        return None, lambda: None
    if against == "onnxruntime":
        return onnxruntime_step(bundle.path / "model.onnx", _feeds(bundle), threads), lambda: None
    if against == "onnxruntime-web":
        return web(bundle.path / "model.onnx", _feeds(bundle), threads, ours)
    if not Path(against).exists():
        raise UsageError(f"no such opponent: {against}", hint="onnxruntime, onnxruntime-web, a bundle or a model")
    other = _open(_bundle(Path(against), target, shapes, threads), target, engine, threads, ours)
    return other.step, other.close


def _result(subject: Path, target: str, threads: int, against: str | None, timing: Timing) -> dict[str, Any]:
    import numpy as np

    theirs = timing.theirs
    return {
        "schema": 1,
        "subject": str(subject),
        "target": target,
        "threads": threads,
        "machine": machine(),
        "runs": len(timing.ours),
        "median_ms": float(np.median(timing.ours)),
        "p10_ms": float(np.percentile(timing.ours, 10)),
        "p90_ms": float(np.percentile(timing.ours, 90)),
        "against": None if theirs is None else {"name": against, "median_ms": float(np.median(theirs))},
        "ratio": timing.ratio,
        "ratio_p10": timing.ratio_at(10),
        "ratio_p90": timing.ratio_at(90),
    }


def _peak_bytes(facts: dict[str, Any], threads: int) -> int | None:
    """All memory that a run needs; None for bundles of before it was said."""
    peak = facts.get("peak_bytes")
    return None if peak is None else int(peak + (threads - 1) * facts.get("thread_bytes", 0))


def _profile(bundle: Bundle, target: str, engine: str | None, running: Engine, threads: int) -> dict[str, Any]:
    """Every kernel call: its time, the multiply-adds it does per second, and their share of the machine's peak."""
    from spa.runtime.load import target_of
    from spa.runtime.peak import peak_gmacs
    from spa.runtime.profile import part_seconds

    seconds = part_seconds(running)
    peak = peak_gmacs(target_of(bundle.path, target), engine) * threads
    kernels = bundle.manifest["targets"][target]["kernels"]
    copies = [{"layer": "copy of an output", "kernel": "", "macs": 0}] * (len(seconds) - len(kernels))
    layers = []
    for row, taken in zip([*kernels, *copies], seconds.tolist(), strict=True):
        gmacs = row.get("macs", 0) / taken / 1e9
        layers.append(
            {
                "name": row["layer"],
                "kernel": " ".join(filter(None, (row.get("family"), row.get("format"), row.get("tile")))),
                "ms": taken * 1e3,
                "gmacs": gmacs,
                "share_of_peak": gmacs / peak,
            }
        )
    return {"peak_gmacs": peak, "layers": layers}


def _print(results: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from spa.cli.terminal import console, show

    out = console()
    table = Table("subject", "target", "median ms", "p10", "p90", "MB", "against", "median ms", "ratio", "p10 - p90")
    for row in results:
        other = row["against"]
        theirs = [other["name"], f"{other['median_ms']:.3f}"] if other else ["", ""]
        ratio = [f"{row['ratio']:.2f}", f"{row['ratio_p10']:.2f} - {row['ratio_p90']:.2f}"] if other else ["", ""]
        numbers = [f"{row[k]:.3f}" for k in ("median_ms", "p10_ms", "p90_ms")]
        numbers += [f"{row['peak_bytes'] / 1e6:.2f}" if row["peak_bytes"] else ""]
        table.add_row(escape(row["subject"]), row["target"], *numbers, *theirs, *ratio)
    show(out, table)
    for row in results:
        if "layers" not in row:
            continue
        table = Table(
            "layer", "kernel", "ms", "GMAC/s", "of peak", title=escape(f"{row['subject']}, {row['threads']} threads")
        )
        for layer in row["layers"]:
            speed = [f"{layer['gmacs']:.1f}", f"{layer['share_of_peak']:.0%}"] if layer["gmacs"] else ["", ""]
            table.add_row(escape(layer["name"]), layer["kernel"], f"{layer['ms']:.4f}", *speed)
        total = sum(layer["ms"] for layer in row["layers"])
        table.add_row("together", "", f"{total:.3f}", "", f"peak {row['peak_gmacs']:.0f} GMAC/s")
        show(out, table)


def machine() -> str:
    """System, architecture and processor."""
    return f"{platform.system()} {platform.machine()} {_cpu()}".strip()


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
