"""Writing what `spa prune` found as a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spa.model import Model
    from spa.pipeline import Result


def write_bundle(
    network: Model,
    result: Result,
    out: Path,
    targets: tuple[str, ...],
    document: dict[str, Any],
    recipe: str,
    shapes: dict[str, tuple[int, ...]],
    *,
    force: bool,
    cuda_archs: str | None = None,
    precision: str | None = None,
) -> dict[str, Any]:
    """Compile for the targets and put model, plan, report, recipe and artifacts in place at once. Returns the `targets` of
    the report."""
    from spa.codegen.bundle import compile

    # neither times nor paths: the same run gives the same bytes
    report = {k: v for k, v in document.items() if k not in ("input", "output", "targets", "seconds")}
    files = {
        "recipe.toml": recipe.encode(),
        "report.json": (json.dumps(report, indent=1, default=str) + "\n").encode(),
    }
    if result.plan is not None:
        files["plan.json"] = result.plan.to_json().encode()
    bundle = compile(
        result.model,
        targets,
        out,
        shapes=shapes,
        force=force,
        name=network.name,
        extra_files=files,
        cuda_archs=cuda_archs,
        precision=precision,
    )
    found = {}
    for name in bundle.targets:
        facts = bundle.manifest["targets"][name]
        folder = out / name
        found[name] = {
            "path": str(folder),
            "bytes": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()),
            "code_bytes": facts["code_bytes"],
        }
    return found
