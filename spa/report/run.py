"""The files of a run: a bundle, the JSON that `spa prune --json` wrote, or a network alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spa.errors import UsageError


@dataclass(frozen=True)
class Run:
    """`model`: the network that is left; `dense`: the one before, where it is known; the rest as their files say."""

    kind: str  # bundle, json or model
    model: Path
    dense: Path | None = None
    plan: dict[str, Any] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)  # of `spa prune`
    manifest: dict[str, Any] = field(default_factory=dict)
    bench: tuple[dict[str, Any], ...] = ()
    recipe: str = ""


def find(place: Path, *, dense: Path | None = None, plan: Path | None = None, bench: Sequence[Path] = ()) -> Run:
    """Raises `UsageError` for what is no run, and for files named that are not there."""
    if dense is not None and not dense.is_file():
        raise UsageError(f"cannot read the network before: {dense} is no file")
    timings = tuple(read(path, "a document of `spa bench --json`", "median_ms") for path in bench)
    given = read(plan, "a plan", "removed") if plan is not None else {}
    if place.is_dir():
        return bundle(place, dense, given, timings)
    if not place.is_file():
        raise UsageError(f"{place} does not exist", hint="a bundle, the JSON of `spa prune --json`, or a model")
    if place.suffix != ".json":
        return Run("model", place, dense, plan=given, bench=timings)
    document = read(place, "the JSON of `spa prune --json`", "before")
    output = named(document.get("output"), place)
    if output is None:
        told = document.get("output")
        raise UsageError(
            f"the network that was written, {told}, is not there" if told else "a dry run: nothing was written",
            str(place),
            "spa report BUNDLE or MODEL, or move the JSON beside its networks",
        )
    before = dense or named(document.get("input"), place)
    if output.is_dir():
        found = bundle(output, before, given, timings)
        return Run(
            "json", found.model, before, found.plan, found.document | document, found.manifest, timings, found.recipe
        )
    return Run("json", output, before, given, document, bench=timings)


def bundle(folder: Path, dense: Path | None, plan: dict[str, Any], bench: tuple[dict[str, Any], ...]) -> Run:
    if not (folder / "model.onnx").is_file():
        raise UsageError(f"{folder} is not a bundle: it has no model.onnx", hint="spa prune MODEL -o DIR")

    def part(name: str, what: str, key: str) -> dict[str, Any]:
        return read(folder / name, what, key) if (folder / name).is_file() else {}

    recipe = folder / "recipe.toml"
    return Run(
        "bundle",
        folder / "model.onnx",
        dense,
        plan or part("plan.json", "a plan", "removed"),
        part("report.json", "a report of `spa prune`", "before"),
        part("manifest.json", "a manifest", "targets"),
        bench,
        recipe.read_text("utf-8", errors="replace") if recipe.is_file() else "",
    )


def read(path: Path, what: str, key: str) -> dict[str, Any]:
    """A JSON object that has `key`. Raises `UsageError`."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {what}: {error}", str(path)) from None
    if not isinstance(found, dict) or key not in found:
        raise UsageError(f"not {what}: it has no '{key}'", str(path))
    return found


def named(path: Any, beside: Path) -> Path | None:
    """A file or folder that a document names: where it says, from the document's folder, or beside the document."""
    if not isinstance(path, str) or not path:
        return None
    places = (Path(path), beside.parent / path, beside.parent / Path(path).name)
    return next((p for p in places if p.exists()), None)
