"""Accuracy without fine-tuning: trained networks pruned to shares of their multiply-accumulates, on their real data.

    python benchmarks/accuracy.py FOLDER [NAME [SHARE,...]] [--only METHOD,...] [--results FILE] [--others PYTHON] [--table]

FOLDER holds `models/NAME.onnx` and `evaluate.py`: `TASKS`, `calib(NAME, n)` and `top1(NAME, path)` for the names in TASKS,
`faces(path)` for the detector. Without NAME: the rows of AIMS. Methods, none of which trains anything:

    data            channels by Optimal Brain Surgeon and measured curves, readers mended, on 256 samples without labels
    synthetic       the same on inputs that are drawn
    weights         l2, readers mended by what the weights alone suggest
    l2              l2, nothing mended
    torch-pruning, onnxsim      by l2, in the environment of `--others PYTHON` (see benchmarks/others.py): the largest
                    network within the budget by bisection of their ratio, uniform or global, whichever comes out better

What was measured goes to FILE (benchmarks/results/accuracy.json) at once; a row that is there, from the same source of
`spa` and the same network, is not measured again. `--table` measures nothing. The table is printed as Markdown.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import platform
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import spa
import spa.passes
from spa.calibration import load
from spa.errors import SpaError
from spa.pruning import finish
from spa.workbench import CalibratedPlanner

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "accuracy.json"
SAMPLES = 256
OWN, OTHERS = ("data", "synthetic", "weights", "l2"), ("torch-pruning", "onnxsim")
METHODS = (*OWN, *OTHERS)
ASIDE = {
    "cli",
    "report",
    "checking",
    "codegen",
    "runtime",
    "sparsity",
    "interop",
}  # packages that no figure here depends on
PATIENCE = 150  # seconds for one answer of another tool

# network -> share of the multiply-accumulates kept -> what should be left with data, and without
AIMS: dict[str, dict[float, tuple[float | None, float | None]]] = {
    "dscnn_kws": {0.6: (0.84, None)},
    "resnet20_cifar10_jpegft": {0.75: (0.85, 0.80), 0.5: (0.79, 0.65)},
    "lstm_mnist": {0.6: (0.94, None)},
    "magika_standard_v3_3": {0.6: (0.95, None)},
    "mobilenet_v1_0.5_160_imagenet": {0.8: (0.62, 0.50)},
    "ultraface_slim_320": {0.7: (0.93, 0.85)},
    "resnet56_cifar10_bn": {0.5: (0.80, 0.72)},
    "tf2_mobilenet_v2_1.0_224_imagenet": {0.9: (0.865, 0.77), 0.8: (0.82, 0.50), 0.75: (0.77, None), 0.6: (0.58, None)},
}


@dataclass(frozen=True)
class Row:
    """One measurement. `value`: top-1 or F1, None where the method failed (`note` says why); `macs`: share that is left;
    `seconds`: all of it, with planning, proof and metric (the first share of a method gathers what the others use too);
    `source`: digest of what the figure depends on."""

    network: str
    share: float
    method: str
    metric: str
    value: float | None
    n: int
    macs: float | None
    seconds: float
    note: str
    date: str
    machine: str
    versions: str
    source: str

    @property
    def key(self) -> tuple[str, float, str]:
        return self.network, self.share, self.method


def read(path: Path) -> dict[tuple[str, float, str], Row]:
    rows = [Row(**r) for r in json.loads(path.read_text())] if path.exists() else []
    return {r.key: r for r in rows}


def write(path: Path, rows: dict[tuple[str, float, str], Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(rows[k]) for k in sorted(rows)], indent=1)
    stage = path.with_suffix(".part")
    stage.write_text(text + "\n")
    stage.replace(path)


def digest(*parts: Path) -> str:
    """Of files, and of Python sources below folders."""
    found = hashlib.sha256()
    for part in parts:
        inside = (
            [p for p in part.rglob("*.py") if p.relative_to(part).parts[0] not in ASIDE] if part.is_dir() else [part]
        )
        for path in sorted(inside):
            found.update(path.read_bytes())
    return found.hexdigest()[:16]


def machine() -> str:
    found = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{found[0] if found else platform.machine()}, {len(found)} cores"


def versions() -> str:
    return ", ".join(f"{p} {metadata.version(p)}" for p in ("onnxruntime", "numpy", "scipy"))


class Network:
    """A network with its metric and its calibration inputs; a planner per source of inputs serves all shares."""

    def __init__(self, folder: Path, name: str, evaluate: Any, stage: Path) -> None:
        self.name, self.evaluate, self.stage = name, evaluate, stage
        self.path = folder / "models" / f"{name}.onnx"
        self.model = spa.load(self.path)
        self.macs = self.model.inspect().macs
        self.planners: dict[str, tuple[CalibratedPlanner, Any]] = {}
        self.tools: dict[str, Tool] = {}

    def score(self, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = (
            self.evaluate.top1(self.name, path) if self.name in self.evaluate.TASKS else self.evaluate.faces(path)
        )
        return found

    def samples(self) -> Any:
        """Calibration inputs; of the detector's pictures the first fifth, which its metric counts too."""
        if self.name in self.evaluate.TASKS:
            return self.evaluate.calib(self.name, SAMPLES)
        import numpy as np

        e = self.evaluate
        z = np.load(e.load.DATA / "faces_320x240_golden.npz")
        pictures = e.load.images("faces_320x240_golden.npz")[0] if "labels" in z else e._face_pictures(z)
        found = e.load.nchw(pictures, 127.0, 128.0)
        return found[: max(1, len(found) // 5)]

    def own(self, method: str, share: float) -> spa.Model:
        """Pruned by this project's own methods."""
        if method in ("l2", "weights"):
            return spa.prune(self.model, macs=share, calib="weights" if method == "weights" else None).model
        if method not in self.planners:
            feeds = load(self.samples() if method == "data" else method, self.model)
            self.planners[method] = CalibratedPlanner(self.model, spa.analyze(self.model), feeds), feeds
        planner, feeds = self.planners[method]
        return finish(self.model, planner.plan("macs", share), calib=feeds).model

    def measure(self, method: str, share: float, others: str | None) -> tuple[dict[str, Any], float, str]:
        """Score, share of the multiply-accumulates left, note."""
        if method in OTHERS:
            return self.other(method, share, str(others))
        out = self.stage / "own.onnx"
        if method == "dense":
            return self.score(self.path), 1.0, ""
        model = self.own(method, share)
        model.save(out, force=True)
        return self.score(out), model.inspect().macs / self.macs, ""

    def tool(self, method: str, others: str) -> Tool:
        if method not in self.tools:
            self.tools[method] = Tool(others, method, self.path)
        return self.tools[method]

    def other(self, method: str, share: float, others: str) -> tuple[dict[str, Any], float, str]:
        """The better of the tool's two scopes, each with the smallest ratio that meets the budget."""
        tool, found = self.tool(method, others), []
        for everywhere in (False, True):
            low, high, fits = 0.0, 1.0, None
            for _ in range(7):
                ratio = (low + high) / 2
                out = self.stage / f"{method}-{everywhere}-{ratio}.onnx"
                tool.prune(ratio, everywhere, out)
                left = spa.load(out).inspect().macs / self.macs
                if left <= share:
                    high, fits = ratio, (out, left, ratio)
                else:
                    low = ratio
            if fits:
                out, left, ratio = fits
                try:
                    score = self.score(out)
                except Exception as error:  # whatever the runtime or the metric makes of it
                    raise RuntimeError(f"what it writes does not run: {error}") from error
                found.append((score, left, f"{'global' if everywhere else 'uniform'}, ratio {ratio:.3f}"))
        if not found:
            raise RuntimeError("removes too little to meet the budget at any ratio")
        return max(found, key=lambda f: float(f[0]["value"]))


class Tool:
    """Another tool, in a process of its own."""

    def __init__(self, python: str, name: str, model: Path) -> None:
        command = [python, "-W", "ignore", str(HERE / "others.py"), name, str(model)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            self.version = str(self.answer()["version"])
        except RuntimeError as error:
            raise RuntimeError(f"{name} does not start with {python}") from error

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.close()
            raise RuntimeError(f"no answer in {PATIENCE} s" if not ready else "died")
        found: dict[str, Any] = json.loads(line)
        return found

    def prune(self, ratio: float, everywhere: bool, out: Path) -> None:
        if self.process.poll() is not None:
            raise RuntimeError("died")
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"ratio": ratio, "global": everywhere, "out": str(out)}) + "\n")
        self.process.stdin.flush()
        error = self.answer().get("error")
        if error:
            raise RuntimeError(error)


def measured(
    network: Network,
    shares: list[float],
    methods: list[str],
    known: dict[tuple[str, float, str], Row],
    others: str | None,
) -> Iterator[Row]:
    """Rows that are not known yet, one at a time."""
    parts = Path(spa.__file__).parent, Path(spa.passes.__file__).parent
    for method in ["dense", *methods]:
        if method in OTHERS and not others:
            continue
        for share in [1.0] if method == "dense" else shares:
            uses = (digest(network.path) if method == "dense" else digest(network.path, *parts)) + "/"
            about = versions()
            start = time.perf_counter()
            try:
                if method in OTHERS:
                    about = network.tool(method, str(others)).version
                    uses = f"{digest(network.path, HERE / 'others.py')}/{about}"
                row = known.get((network.name, share, method))
                if row and row.source == uses:
                    continue
                score, left, note = network.measure(method, share, others)
            except (SpaError, RuntimeError, OSError) as error:
                score, left, note = {"metric": "", "value": None, "n": 0}, None, str(error).splitlines()[0]
            yield Row(
                network.name,
                share,
                method,
                score["metric"],
                score["value"],
                score["n"],
                None if left is None else round(left, 4),
                round(time.perf_counter() - start, 1),
                note,
                datetime.date.today().isoformat(),
                machine(),
                about,
                uses,
            )


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def table(rows: dict[tuple[str, float, str], Row]) -> str:
    """Markdown: a line per network and share; aims in brackets, a figure that misses its aim in bold."""
    lines = [f"| network (dense) | MACs | {' | '.join(METHODS)} |", "|---" * (2 + len(METHODS)) + "|"]
    order = [*AIMS, *sorted({r.network for r in rows.values()} - set(AIMS))]
    for name in order:
        shares = sorted({r.share for r in rows.values() if r.network == name and r.method != "dense"}, reverse=True)
        for share in shares:
            dense = rows.get((name, 1.0, "dense"))
            aims = dict(zip(OWN, AIMS.get(name, {}).get(share, (None, None)), strict=False))
            cells = []
            for method in METHODS:
                row, aim = rows.get((name, share, method)), aims.get(method)
                cell = percent(row.value if row else None)
                if row and row.value is not None and aim is not None and round(row.value, 3) < aim:
                    cell = f"**{cell}**"
                cells.append(cell + (f" ({100 * aim:g})" if aim is not None else ""))
            lines.append(f"| {name} ({percent(dense.value if dense else None)}) | {share:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None, tell: Callable[[str], None] = print) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("name", nargs="?")
    parser.add_argument("shares", nargs="?")
    parser.add_argument("--only", default=",".join(METHODS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--others")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args(arguments)
    methods = options.only.split(",")
    if unknown := set(methods) - set(METHODS):
        parser.error(f"no such method: {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")
    known = read(options.results)
    if not options.table:
        sys.path.insert(0, str(options.folder))
        import evaluate  # type: ignore[import-not-found]

        for name in [options.name] if options.name else AIMS:
            shares = (
                [float(s) for s in options.shares.split(",")] if options.shares else list(AIMS.get(name, {0.5: ()}))
            )
            with tempfile.TemporaryDirectory() as stage:
                network = Network(options.folder, name, evaluate, Path(stage))
                for row in measured(network, shares, methods, known, options.others):
                    known = read(options.results) | {row.key: row}  # another run may write to it as well
                    write(options.results, known)
                    left = "" if row.macs is None else f" at {row.macs:.3f}"
                    tell(f"{name} {row.share:g} {row.method}: {percent(row.value)}{left}, {row.seconds} s {row.note}")
                for tool in network.tools.values():
                    tool.close()
    tell(table(known))
    return 0


if __name__ == "__main__":
    sys.exit(main())
