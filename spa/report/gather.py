"""What a run's files say, as one document of plain data: the JSON twin of the page."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from spa._version import __version__
from spa.report.layers import densities, kernels, rows
from spa.report.run import Run

if TYPE_CHECKING:
    from spa.cost import Cost
    from spa.coupling import Coupling
    from spa.model import Model

SCHEMA = 1
TOTALS = (
    ("params", "parameters", ""),
    ("macs", "multiply-accumulates", ""),
    ("bytes", "constants", "B"),
    ("peak_activation_bytes", "activations at the peak", "B"),
)
PICTURES = 400_000  # characters of SVG in a page


@dataclass(frozen=True)
class Report:
    """`data`: the JSON twin; `pictures`: group -> SVG of its neighbourhood."""

    data: dict[str, Any]
    pictures: dict[str, str] = field(default_factory=dict)


def unsized(model: Model) -> dict[str, int]:
    """No symbolic size is fixed."""
    return {}


def gather(run: Run, command: str = "", sizes: Callable[[Model], dict[str, int]] = unsized) -> Report:
    """Everything a page says. `command` made the report; `sizes` fixes a network's symbolic sizes, as for `spa inspect`."""
    from spa.cost import inspect
    from spa.coupling import analyze
    from spa.model import load

    model = load(run.model)
    dense = load(run.dense) if run.dense is not None else None
    after = inspect(model, sizes(model))
    before = inspect(dense, sizes(dense)) if dense is not None else None
    source = dense or model
    allowed = any(not g.get("exact", True) for g in run.plan.get("groups", []))
    coupling = analyze(source, sizes=sizes(source), allow_approximate=allowed)
    told = run.document
    data = {
        "schema": SCHEMA,
        "name": run.manifest.get("name") or run.plan.get("model", {}).get("name") or model.name,
        "kind": run.kind,
        "totals": totals(after, before, told),
        "verified": told.get("verified"),
        "drift": told.get("drift") or {},
        "layers": rows(after, before, densities(model)),
        "groups": groups(coupling, run.plan),
        "blocked": blocked(coupling, run.plan),
        "curves": curves(told, run.plan),
        "pareto": pareto(told),
        "sparsity": told.get("sparsity"),
        "targets": targets(run.manifest),
        "kernels": kernels(run.manifest, run.bench),
        "bench": [{k: v for k, v in doc.items() if k != "layers"} for doc in run.bench],
        "constants": run.plan.get("constants", {}),
        "made": made(run, command),
    }
    return Report(data, pictures(coupling))


def totals(after: Cost, before: Cost | None, told: dict[str, Any]) -> list[dict[str, Any]]:
    """What `spa prune` told first: it knows the network before even where that is not at hand."""
    found = []
    for key, label, unit in TOTALS:
        was = told.get("before", {}).get(key, getattr(before, key) if before is not None else None)
        now = told.get("after", {}).get(key, getattr(after, key))
        found.append({"key": key, "label": label, "unit": unit, "before": was, "after": now})
    if (left := told.get("nonzero")) is not None:
        found.append({"key": "nonzero", "label": "non-zero weights", "unit": "", "before": None, "after": left})
    return found


def groups(coupling: Coupling, plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The plan's groups, or those found in the network where there is no plan (`removed` is None then)."""
    if "groups" in plan:
        return [
            {
                "id": str(g.get("id", "")),
                "size": g.get("size", 0),
                "removed": len(g.get("removed", [])),
                "exact": g.get("exact", True),
                "members": len(g.get("members", [])),
            }
            for g in plan["groups"]
        ]
    return [
        {"id": g.id, "size": g.size, "removed": None, "exact": g.exact, "members": len(g.members)}
        for g in coupling.groups
    ]


def blocked(coupling: Coupling, plan: dict[str, Any]) -> list[dict[str, Any]]:
    from spa.coupling.explain import remedy

    known = {(b.group, b.reason.text): remedy(b.reason) for b in coupling.blocked}
    found = plan.get("blocked")
    if found is None:
        found = [
            {"group": b.group, "reason": b.reason.text, "node": b.reason.node, "op": b.reason.op, "axis": b.reason.axis}
            for b in coupling.blocked
        ]
    return [
        {k: b.get(k) for k in ("group", "reason", "node", "op", "axis")}
        | {"remedy": known.get((b.get("group", ""), b.get("reason", "")), "")}
        for b in found
    ]


def curves(told: dict[str, Any], plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Error curves with the level that was chosen: how many channels of the group the plan removes."""
    removed = {g.get("id"): len(g.get("removed", [])) for g in plan.get("groups", [])}
    sizes = {g.get("id"): g.get("size", 0) for g in plan.get("groups", [])}
    found = []
    for curve in told.get("curves") or []:
        name = curve["group"]
        found.append(
            {
                "group": name,
                "counts": curve["counts"],
                "errors": curve["errors"],
                "size": sizes.get(name),
                "removed": removed.get(name),
            }
        )
    return found


def pareto(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Points that were measured on the way: share of the MACs left, value, and whether it was good enough."""
    points = told.get("pareto") or (told.get("drift") or {}).get("metric", {}).get("trials") or []
    usable = [p for p in points if p.get("macs") is not None and p.get("value") is not None]
    return sorted(({k: p.get(k) for k in ("macs", "value", "fits")} for p in usable), key=lambda p: p["macs"])


def targets(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    files = manifest.get("files", {})
    return [
        {
            "name": name,
            **{k: facts.get(k) for k in ("triple", "cpu", "library", "code_bytes", "weight_bytes", "arena_bytes")},
            "files": {f: digest for f, digest in files.items() if f.startswith(f"{facts.get('path', name)}/")},
        }
        for name, facts in manifest.get("targets", {}).items()
    ]


def made(run: Run, command: str) -> dict[str, Any]:
    """What made the run, as far as its files tell, and where this report was made."""
    told = run.document
    return {
        "command": told.get("command"),
        "pipeline": run.plan.get("pipeline"),
        "recipe": run.recipe or None,
        "seconds": told.get("seconds"),
        "spa": run.manifest.get("spa"),
        "environment": told.get("environment"),
        "source_sha256": run.plan.get("model", {}).get("sha256"),
        "report": {
            "command": command,
            "spa": __version__,
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}",
            **{name: installed(name) for name in ("onnx", "onnxruntime", "numpy")},
        },
        "model": run.model.name,
        "dense": run.dense.name if run.dense is not None else None,
    }


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def pictures(coupling: Coupling) -> dict[str, str]:
    """Of the groups, those that run through most of the network first, until the page has enough."""
    from spa.coupling.picture import draw

    found, left = {}, PICTURES
    for group in sorted(coupling.groups, key=lambda g: (-len(g.members), g.id)):
        drawn = draw(coupling, group)
        if len(drawn) <= left:
            found[group.id] = drawn
            left -= len(drawn)
    return found


def twin(report: Report) -> str:
    """The JSON twin; numbers that are none (NaN) become null."""
    return json.dumps(clean(report.data), indent=1, allow_nan=False, default=str) + "\n"


def clean(value: Any) -> Any:
    """Plain data without NaN and infinities."""
    if isinstance(value, dict):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value
