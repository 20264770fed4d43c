"""spa bench"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spa.errors import Unsupported, UsageError

if TYPE_CHECKING:
    from spa.codegen.bundle import Bundle
    from spa.runtime.bench import Step


@click.command("bench")
@click.argument("subjects", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE|MODEL...")
@click.option("--target", default="host", show_default=True, help="host or wasm; arm on an aarch64 machine.")
@click.option("--engine", type=click.Choice(["native", "wasmtime", "node"]), help="What runs it.")
@click.option("--threads", default=1, show_default=True, help="Artifacts have one thread, so this must be 1 for now.")
@click.option("--against", metavar="onnxruntime|BUNDLE|MODEL", help="Whom to run in turn with it.")
@click.option("--shape", "shapes", multiple=True, metavar="NAME:1,3,224,224", help="Fix the shape of a model's input.")
@click.option("--runs", type=click.IntRange(1), help="Exactly so many runs [default: about 3 seconds].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def bench(
    subjects: tuple[Path, ...],
    target: str,
    engine: str | None,
    threads: int,
    against: str | None,
    shapes: tuple[str, ...],
    runs: int | None,
    as_json: bool,
) -> None:
    """Time bundles and models, in turn with others: medians and the ratio theirs / ours."""
    from spa.runtime.bench import measure

    if threads != 1:
        raise Unsupported("artifacts run in one thread", hint="--threads 1")
    if against == "onnxruntime-web":
        raise Unsupported("onnxruntime-web is not driven from here yet", hint="--against onnxruntime")
    results = []
    for subject in subjects:
        bundle = _bundle(subject, target, shapes)
        ours, close = _step(bundle, target, engine)
        theirs, close_theirs = _opponent(against, bundle, target, engine, shapes, threads)
        try:
            timing = measure(ours, theirs, runs=runs)
        finally:
            close()
            close_theirs()
        results.append(_result(subject, target, threads, against, timing))
    if as_json:
        click.echo(json.dumps(results[0] if len(results) == 1 else results))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("subject", "target", "median ms", "p10", "p90", "against", "median ms", "ratio")
    for row in results:
        other = row["against"] or {}
        numbers = [f"{row[k]:.3f}" for k in ("median_ms", "p10_ms", "p90_ms")]
        theirs_ms = f"{other['median_ms']:.3f}" if other else ""
        table.add_row(
            row["subject"],
            row["target"],
            *numbers,
            other.get("name", ""),
            theirs_ms,
            f"{row['ratio']:.2f}" if other else "",
        )
    Console().print(table)


def _bundle(subject: Path, target: str, shapes: tuple[str, ...]) -> Bundle:
    from spa.cli.options import parse_shapes
    from spa.codegen.bundle import Bundle, compile

    return Bundle.load(subject) if subject.is_dir() else compile(subject, target, shapes=parse_shapes(shapes))


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


def _step(bundle: Bundle, target: str, engine: str | None) -> tuple[Step, Any]:
    from spa.runtime.load import target_of
    from spa.runtime.library import Qemu
    from spa.runtime.run import open_engine

    loaded = target_of(bundle.path, target)
    running = open_engine(loaded, engine)
    if isinstance(running, Qemu):
        running.step()  # raises: emulation says nothing about time
    running.run(_feeds(bundle))
    return running.step, running.close


def _opponent(
    against: str | None, bundle: Bundle, target: str, engine: str | None, shapes: tuple[str, ...], threads: int
) -> tuple[Step | None, Any]:
    if against is None:
        return None, lambda: None
    if against == "onnxruntime":
        return _onnxruntime(bundle, threads), lambda: None
    if not Path(against).exists():
        raise UsageError(f"no such opponent: {against}", hint="onnxruntime, a bundle or a model")
    return _step(_bundle(Path(against), target, shapes), target, engine)


def _onnxruntime(bundle: Bundle, threads: int) -> Step:
    """onnxruntime at its best: all graph optimisations on, the same number of threads."""
    import time

    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(bundle.path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    feeds = _feeds(bundle)

    def step() -> float:
        begin = time.perf_counter()
        session.run(None, feeds)
        return time.perf_counter() - begin

    return step


def _result(subject: Path, target: str, threads: int, against: str | None, timing: Any) -> dict[str, Any]:
    import numpy as np

    return {
        "schema": 1,
        "subject": str(subject),
        "target": target,
        "threads": threads,
        "machine": f"{platform.system()} {platform.machine()} {_cpu()}".strip(),
        "runs": len(timing.ours),
        "median_ms": float(np.median(timing.ours)),
        "p10_ms": float(np.percentile(timing.ours, 10)),
        "p90_ms": float(np.percentile(timing.ours, 90)),
        "against": None if timing.theirs is None else {"name": against, "median_ms": float(np.median(timing.theirs))},
        "ratio": timing.ratio,
    }


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
