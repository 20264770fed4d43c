"""spa run"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spa.errors import UsageError

if TYPE_CHECKING:
    from spa.runtime.tensor import Array


@click.command("run")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--target", help="Which target of the bundle [default: the only one, or host].")
@click.option(
    "--input", "source", type=click.Path(path_type=Path), required=True, metavar="X.npz", help="Arrays by input name."
)
@click.option(
    "-o", "--output", "sink", type=click.Path(path_type=Path), metavar="Y.npz", help="Write the outputs there."
)
@click.option("--engine", type=click.Choice(["native", "qemu", "wasmtime", "node", "chromium"]), help="What runs it.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Threads that share the work.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def run(
    bundle: Path, target: str | None, source: Path, sink: Path | None, engine: str | None, threads: int, as_json: bool
) -> None:
    """Run BUNDLE once on the arrays of an .npz file."""
    from spa.runtime.load import target_of
    from spa.runtime.run import open_engine

    loaded = target_of(bundle, target)
    feeds = _read(source)
    running = open_engine(loaded, engine, threads)
    try:
        begin = time.perf_counter()
        outputs = running.run(feeds)
        seconds = time.perf_counter() - begin
    finally:
        running.close()
    if sink is not None:
        _write(sink, outputs)
    rows = [
        {"name": k, "dtype": str(v.dtype), "shape": list(v.shape), "min": _finite(v.min()), "max": _finite(v.max())}
        for k, v in outputs.items()
    ]
    if as_json:
        result = {
            "schema": 1,
            "target": loaded.name,
            "outputs": rows,
            "path": str(sink) if sink else None,
            "seconds": round(seconds, 6),
        }
        click.echo(json.dumps(result))
        return
    from rich.markup import escape
    from rich.table import Table

    from spa.cli.terminal import console, show

    table = Table("output", "dtype", "shape", "min", "max")
    for row in rows:
        table.add_row(escape(str(row["name"])), str(row["dtype"]), str(row["shape"]), f"{row['min']}", f"{row['max']}")
    show(console(), table)


def _read(path: Path) -> dict[str, Array]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise UsageError(f"{path} holds one array without a name", hint="numpy.savez(path, input=array)")
            return {name: archive[name] for name in archive.files}
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{path} is no readable .npz file: {error}", hint="numpy.savez(path, input=array)") from error


def _finite(value: Any) -> float | None:
    """For JSON, which knows neither infinity nor NaN."""
    return float(f"{value:.9g}") if abs(value) < float("inf") else None


def _write(path: Path, arrays: Mapping[str, Array]) -> None:
    """As `numpy.savez`, which cannot take every name; whole or not at all."""
    import zipfile

    import numpy as np

    stage = path.with_name(f".{path.name}.tmp")
    try:
        with zipfile.ZipFile(stage, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
        stage.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        stage.unlink(missing_ok=True)
