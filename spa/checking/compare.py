"""A model against its limits and its baseline: which limits are passed, and which layers changed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from spa.checking.limits import Column, kind_of

if TYPE_CHECKING:
    from spa.checking.config import Wanted
    from spa.checking.metrics import Layer, Measured

Status = Literal["ok", "failed", "ignored", "unknown"]
ALIGNED = 3000  # layers: the sequence of longer networks is not aligned


@dataclass(frozen=True)
class Finding:
    """One limit held against one number. `bound`: the number that must not be passed. "ignored": passed by no more than the
    floor; "unknown": the limit is relative and the baseline has no such number."""

    metric: str
    value: float
    limit: str
    bound: float | None
    baseline: float | None
    status: Status

    @property
    def bad(self) -> bool:
        return self.status in ("failed", "unknown")


@dataclass(frozen=True)
class Change:
    """One layer, before and after; one of them may be None."""

    before: Layer | None
    after: Layer | None

    @property
    def layer(self) -> Layer:
        found = self.after or self.before
        assert found is not None
        return found

    def delta(self, column: Column) -> int:
        old, new = (0 if x is None else int(getattr(x, column)) for x in (self.before, self.after))
        return new - old

    @property
    def retyped(self) -> bool:
        return self.before is not None and self.after is not None and self.before.dtype != self.after.dtype

    def word(self) -> str:
        """What happened to it: appeared, vanished, changed dtype, grew, shrank, or changed (something else)."""
        if self.before is None or self.after is None:
            return "appeared" if self.before is None else "vanished"
        if self.retyped:
            return "changed dtype"
        deltas = [self.delta(c) for c in ("bytes", "params", "macs", "activations", "nonzero")]
        first = next((d for d in deltas if d), 0)
        return "grew" if first > 0 else "shrank" if first < 0 else "changed"


def findings(wanted: Wanted, now: Measured, before: Measured | None) -> list[Finding]:
    """Every limit, in the order of the configuration."""
    found = []
    for metric, limits in wanted.budgets.items():
        value = now.metrics[metric]
        known = None if before is None else before.metrics.get(metric)
        kind = kind_of(metric)
        floor = wanted.floors.get(metric, kind.floor)
        sign = -1 if kind.higher_is_better else 1
        for limit in limits:
            bound = limit.bound(known)
            status: Status = "unknown"
            if bound is not None:
                slack = 1e-9 * abs(bound) if limit.relative else 0.0  # of rounding, and of the baseline's six digits
                if isinstance(value, float):
                    slack = max(slack, 1e-5 * abs(bound)) if limit.relative else slack
                status = "ok" if sign * value <= sign * bound + slack else "failed"
                near = limit.relative and known is not None and sign * (value - known) <= floor
                if status == "failed" and near:
                    status = "ignored"
            found.append(Finding(metric, value, limit.text, bound, known, status))
    return found


def changes(before: Sequence[Layer], after: Sequence[Layer]) -> list[Change]:
    """The layers that are not the same any more. Layers are paired by name, or by their order where that explains the
    difference with fewer changes: exporters number layers, and one more of them renames all that follow."""
    best = differing(by_name(before, after))
    if best and max(len(before), len(after)) <= ALIGNED:
        best = min(best, differing(by_order(before, after)), key=len)
    return best


def differing(pairs: Sequence[Change]) -> list[Change]:
    return [p for p in pairs if p.before is None or p.after is None or content(p.before) != content(p.after)]


def content(layer: Layer) -> tuple[Any, ...]:
    """All but the name."""
    return layer.op, layer.dtype, layer.shape, layer.params, layer.macs, layer.bytes, layer.nonzero


def by_name(before: Sequence[Layer], after: Sequence[Layer]) -> list[Change]:
    """Of the same name and operator; of several, the first with the first."""
    waiting: dict[tuple[str, str], list[Layer]] = {}
    for layer in before:
        waiting.setdefault((layer.name, layer.op), []).append(layer)
    pairs = []
    for layer in after:
        same = waiting.get((layer.name, layer.op))
        pairs.append(Change(same.pop(0) if same else None, layer))
    return pairs + [Change(layer, None) for rest in waiting.values() for layer in rest]


def by_order(before: Sequence[Layer], after: Sequence[Layer]) -> list[Change]:
    """Longest runs of equal layers first (difflib); what lies between two runs is paired by name."""
    match = difflib.SequenceMatcher(None, [content(x) for x in before], [content(x) for x in after], autojunk=False)
    pairs = []
    for kind, a, b, c, d in match.get_opcodes():
        same = kind == "equal"
        pairs += list(map(Change, before[a:b], after[c:d])) if same else by_name(before[a:b], after[c:d])
    return pairs


def at_fault(found: Sequence[Finding], changed: Sequence[Change], before: Measured | None) -> list[Change]:
    """The changes behind the limits that failed, the largest first: layers that grew in what failed, appeared, vanished or
    changed dtype. A layer's weight is its growth over the baseline's total, the largest of those that failed."""
    failed = {f.metric: f for f in found if f.status == "failed"}
    if not failed or before is None:
        return []
    columns: dict[Column, float] = {}
    for metric in failed:
        column = kind_of(metric).column
        if column is not None:
            columns[column] = float(max(1, sum(getattr(layer, column) for layer in before.layers)))
    if not columns:
        columns = {"bytes": 1.0}  # of nodes, opset, accuracy: whatever changed

    def weight(change: Change) -> float:
        return max(change.delta(column) / total for column, total in columns.items())

    guilty = [c for c in changed if weight(c) > 0 or c.retyped or c.before is None or c.after is None]
    return sorted(guilty, key=weight, reverse=True)


def better(found: Sequence[Finding], floors: Mapping[str, float]) -> list[Finding]:
    """Limits against the baseline that could be tightened: the number is better by more than the floor."""
    out: dict[str, Finding] = {}
    for f in found:
        kind = kind_of(f.metric)
        if f.baseline is None or not f.limit.startswith(("+", "-")) or not math.isfinite(f.value):
            continue
        gain = (f.value - f.baseline) * (1 if kind.higher_is_better else -1)
        if gain > max(floors.get(f.metric, kind.floor), 1e-5 * abs(f.baseline)):
            out.setdefault(f.metric, f)
    return list(out.values())
