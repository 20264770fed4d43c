"""Limits of budgets, and the table of what can be limited."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Any, Literal

from spa.errors import UsageError
from spa.quantities import quantity

Column = Literal["params", "macs", "bytes", "nonzero", "activations"]  # of a layer


@dataclass(frozen=True)
class Kind:
    """What can be limited. `column`: what of a layer adds up to it; `floor`: changes against the baseline of at most so much
    do not count; `asked`: measured only where a budget or `record` names it."""

    higher_is_better: bool = False
    bytes: bool = False
    column: Column | None = None
    floor: float = 0
    asked: bool = False
    per_target: bool = False


KINDS = {
    "file_bytes": Kind(bytes=True, column="bytes", floor=1000),
    "gzip_bytes": Kind(bytes=True, column="bytes", floor=1000, asked=True),
    "packed_bytes": Kind(bytes=True, column="bytes", floor=1000, asked=True),
    "bytes": Kind(bytes=True, column="bytes"),
    "params": Kind(column="params"),
    "nonzero": Kind(column="nonzero"),
    "macs": Kind(column="macs"),
    "peak_activation_bytes": Kind(bytes=True, column="activations"),
    "nodes": Kind(),
    "opset": Kind(),
    "drift": Kind(asked=True),
    "accuracy": Kind(higher_is_better=True, asked=True),
    "speedup": Kind(higher_is_better=True, column="macs", asked=True),
    "latency_ms": Kind(column="macs", asked=True),
    "artifact_bytes": Kind(bytes=True, column="bytes", asked=True, per_target=True),
    "code_bytes": Kind(bytes=True, asked=True, per_target=True),
}
DEFAULT_BUDGETS = {"file_bytes": "+1%", "params": "+0%", "macs": "+0%", "peak_activation_bytes": "+0%"}


def kind_of(metric: str, where: str = "") -> Kind:
    """The row of a metric's name; `artifact_bytes.host` has a target after the dot. Raises `UsageError`.

    >>> kind_of("code_bytes.wasm").bytes
    True
    """
    name, dot, target = metric.partition(".")
    kind = KINDS.get(name)
    if kind is None:
        near = difflib.get_close_matches(name, KINDS, 1, 0.5)
        raise UsageError(f"there is no metric '{metric}'", where, near[0] if near else "one of " + ", ".join(KINDS))
    if kind.per_target != bool(dot and target):
        hint = f"{name}.host, or another target" if kind.per_target else name
        raise UsageError(
            f"'{metric}' {'names no target' if kind.per_target else 'takes nothing after the dot'}", where, hint
        )
    return kind


@dataclass(frozen=True)
class Limit:
    """`text` as it was written. `relative`: None for a number of its own, else what is added to the baseline: a share of it
    ("+2%") or an amount ("+10KB")."""

    text: str
    value: float
    relative: Literal["share", "amount"] | None = None

    def bound(self, baseline: float | None) -> float | None:
        """The number that must not be passed; None where the baseline has none."""
        if self.relative is None:
            return self.value
        if baseline is None:
            return None
        return baseline + (abs(baseline) * self.value / 100 if self.relative == "share" else self.value)


def parse_limit(metric: str, value: Any, where: str = "") -> Limit:
    """A limit as configured: a number, "2MB", or against the baseline "+2%", "-1%", "+10KB". Raises `UsageError`.

    >>> parse_limit("file_bytes", "+2%").bound(1000), parse_limit("params", 5e6).bound(None)
    (1020.0, 5000000.0)
    """
    forms = 'a number, "2MB", or against the baseline "+2%" or "+10KB"'
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UsageError(f"the limit of '{metric}' is {value!r}", where, forms)
    text = str(value).strip()
    signed = text.startswith(("+", "-")) and isinstance(value, str)
    try:
        if text.endswith("%") and not signed:
            raise UsageError(
                f"the limit of '{metric}' is '{text}', percent of what?", where, f'"+{text}" of the baseline'
            )
        share = text.endswith("%")
        number = quantity(text.removesuffix("%"))
        if not math.isfinite(number):
            raise ValueError
    except ValueError:
        raise UsageError(f"the limit of '{metric}' is '{text}', which is no number", where, forms) from None
    return Limit(text, number, ("share" if share else "amount") if signed else None)
