"""One budget over channels, patterns and densities: every layer becomes narrow, thin, both, or stays as it is.

What a layer may become is measured as channels are (`spa.sparsity.densities.curves`, `spa.sensitivity`), both as the
squared relative change of the network's outputs, so that one knapsack (`spa.knapsack`) can weigh them. What it costs then
is its multiply-accumulates times what its pattern takes on the target (`spa.sparsity.speed`); of a budget of parameters,
those that are not zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from spa.cost import Budget
from spa.errors import CheckFailed, UsageError
from spa.knapsack import Options, choose, masks
from spa.sparsity.densities import curves
from spa.sparsity.layers import Layer, layers
from spa.sparsity.patterns import Pattern, parse
from spa.sparsity.selection import overrides, select
from spa.sparsity.speed import Line, form, lines_for

if TYPE_CHECKING:
    from spa.planning import Plan
    from spa.workbench import CalibratedPlanner

MEASURED = 0.7  # share of zeros around which patterns are measured
FINEST = 0.92  # of the share before, that the next option of a layer may cost
LARGEST = 0.5  # squared relative error of one layer; no option beyond


@dataclass(frozen=True)
class Choices:
    """A layer's options (`spa.knapsack.Options`) with the pattern of each; the first is the dense layer."""

    layer: Layer
    patterns: list[Pattern | None]
    options: Options


def candidates(lines: Mapping[str, Line]) -> list[Pattern]:
    """The patterns of these lines, with the share around which they are measured."""
    return [parse(f if ":" in f else f"{f}:{MEASURED}") for f in lines]


class JointPlanner:
    """Plans over channels (`planner`) and patterns: those that `lines` (of a cost table) name, or that all `targets` are
    fast with, or without a target, unstructured.

    `dense`: weights or nodes (glob) that stay dense. Raises `UsageError` where no pattern is fast on all targets."""

    def __init__(
        self,
        planner: CalibratedPlanner,
        targets: Sequence[str] = (),
        dense: Sequence[str] = (),
        lines: Mapping[str, Line] | None = None,
    ) -> None:
        self.planner = planner
        self.lines = lines or lines_for(targets)
        if not self.lines:
            raise UsageError(
                f"no pattern is fast on all of {', '.join(targets)}", hint="--sparsity PATTERN, or one target at a time"
            )
        coupling = planner.target
        self.patterns = candidates(self.lines)
        rules = overrides([f"{g}=dense" for g in dense])
        self.chosen, _ = select(coupling, layers(coupling), self.patterns[0], rules)
        self.curves = curves(coupling, dict.fromkeys(self.chosen, self.patterns), planner.chooser.feeds)

    def choices(self, kind: Any) -> list[Choices]:
        """What may become of each layer, and what share of it that leaves of a budget of this kind."""
        found = []
        for layer in self.chosen:
            offered: list[tuple[float, float, Pattern | None]] = []
            for pattern in self.patterns:
                curve = self.curves[layer, pattern]
                for density, error in zip(curve.densities[1:], curve.errors[1:], strict=True):
                    share = density if kind == "params" else self.lines[form(pattern)].at(density)
                    if share < 1 and error <= LARGEST:
                        offered.append((share, error, pattern.at(density)))
            best = frontier(offered)
            shares, errors = [1.0, *(s for s, _, _ in best)], [0.0, *(e for _, e, _ in best)]
            found.append(Choices(layer, [None, *(p for _, _, p in best)], Options(layer.weight, shares, errors)))
        return found

    def plan(self, kind: Any, amount: float) -> Plan:
        """Keep this share of `macs`, of `params`, or of a cost table's latency, at the least error.

        Raises `UsageError` for budgets that thin layers say nothing of, `CheckFailed` where it cannot be met."""
        if kind in ("ratio", "size"):
            why = "names channels only" if kind == "ratio" else "is not met by zeros, which are stored all the same"
            raise UsageError(f"--sparsity auto needs a budget it can spend: {kind} {why}", hint="--macs 0.5")
        chooser, coupling = self.planner.chooser, self.planner.target
        given = self.choices(kind)
        limit = amount * Budget(coupling).of(kind, {})
        levels = choose(coupling, chooser.curves, kind, limit, [c.options for c in given])
        if levels is None:
            raise CheckFailed(
                f"a share of {amount:g} of the {kind} cannot be met, thin and narrow as it may be",
                hint="a larger budget; `spa explain` says what is blocked and why",
            )
        count = len(chooser.curves)
        decided = self.planner.decided(masks(coupling, chooser.curves, levels[:count]))
        thin = {c.layer.name: str(c.patterns[n]) for c, n in zip(given, levels[count:], strict=True) if n}
        return replace(decided, sparsity=thin)


def frontier(offered: Sequence[tuple[float, float, Pattern | None]]) -> list[tuple[float, float, Pattern | None]]:
    """Those no other is cheaper and better than, falling in cost, each by a step that is worth one."""
    best: list[tuple[float, float, Pattern | None]] = []
    for share, error, pattern in sorted(offered, key=lambda o: (o[1], o[0])):
        if not best or share <= FINEST * best[-1][0]:
            best.append((share, error, pattern))
    return best
