"""What a report says, in words: numbers with units, what is wrong with one, what happened to a layer, what to do next."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from spa.checking.limits import kind_of
from spa.quantities import human

if TYPE_CHECKING:
    from spa.checking.checked import Report
    from spa.checking.compare import Change, Finding


def amount(metric: str, value: float | None) -> str:
    """A number of a metric with its unit.

    >>> amount("params", 5000), amount("drift", 0.0123456)
    ('5000', '0.01235')
    """
    if value is None:
        return "-"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if kind_of(metric).bytes:
        return human(value).replace(" ", "\u00a0") + "B" if abs(value) >= 1000 else f"{value:.0f}\u00a0B"
    if isinstance(value, int):
        return human(value).replace(" ", "\u00a0") if abs(value) >= 10_000 else str(value)
    return f"{value:.4g}"


def against(finding: Finding) -> str:
    """How far from the baseline, in percent."""
    if finding.baseline is None or not math.isfinite(finding.value):
        return ""
    if not finding.baseline:
        return "" if not finding.value else "from 0"
    return f"{(finding.value / finding.baseline - 1) * 100:+.2f}\u00a0%"


def sentence(finding: Finding) -> str:
    """What is wrong, or right, with one number."""
    now = f"{finding.metric} is {amount(finding.metric, finding.value)}"
    if finding.status == "unknown":
        return f"{now}, the limit {finding.limit} needs a baseline: spa check --update"
    side = "at least" if kind_of(finding.metric).higher_is_better else "at most"
    limit = f"{side} {amount(finding.metric, finding.bound)} is allowed"
    if finding.limit.startswith(("+", "-")):
        limit += (
            f" ({finding.limit} of the baseline's {amount(finding.metric, finding.baseline)}, now {against(finding)})"
        )
    return f"{now}, {limit}" + (", within the floor" if finding.status == "ignored" else "")


def story(change: Change) -> str:
    """What happened to a layer: one line without its name."""
    old, new, word = change.before, change.after, change.word()
    only = old if new is None else new if old is None else None
    if only is not None:
        return f"{word}: {only.op}, {amount('bytes', only.bytes)}, {human(only.macs)} MACs"
    assert old is not None and new is not None
    parts = [f"{old.dtype} > {new.dtype}"] if change.retyped else []
    if old.shape != new.shape:
        parts.append(f"output {'x'.join(map(str, old.shape))} > {'x'.join(map(str, new.shape))}")
    for column in ("bytes", "params", "macs", "nonzero"):
        a, b = getattr(old, column), getattr(new, column)
        if a != b:
            parts.append(f"{column} {human(a)} > {human(b)}")
    return f"{word}: {new.op}, " + ", ".join(parts)


def summary(report: Report) -> str:
    count = len(report.models)
    bad = sum(m.status == "failed" for m in report.models)
    broken = sum(m.status == "error" for m in report.models)
    parts = [f"{count} model{'s' * (count != 1)} checked"]
    parts += [f"{bad} over its limits" if bad == 1 else f"{bad} over their limits"] if bad else []
    parts += [f"{broken} not measured"] if broken else []
    parts += ["all within limits"] if not bad and not broken else []
    return ", ".join(parts)


def advice(report: Report) -> list[str]:
    """Notes, and what to do next."""
    found = list(report.notes)
    if report.updated:
        found.append(f"wrote {report.baseline.name}: commit it")
    elif any(m.failed for m in report.models):
        found.append("meant to be? spa check --update, and commit the baseline")
    elif any(m.better for m in report.models):
        names = sorted({f.metric for m in report.models for f in m.better})
        found.append(f"better than the baseline ({', '.join(names)}): spa check --update keeps it so")
    return found
