"""When verification fails: the smallest set of groups that is at fault, and the first node where numbers part.

Delta debugging (Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input, 2002): halves, then
complements, of ever finer partitions are tried for as long as they still fail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from spa.coupling import Coupling
from spa.coupling.explain import plural
from spa.errors import SpaError, Unsupported
from spa.model import Model
from spa.planning import from_masks, plan
from spa.pruning import apply
from spa.verification import Verification, verify

T = TypeVar("T")


@dataclass(frozen=True)
class Fault:
    """`groups`: none of them can be left out and the failure stays. `where`: the first node whose output differs."""

    groups: list[str]
    where: str
    max_error: float
    pruned: int  # groups that were pruned in the first place
    tried: int  # prunes it took

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if not self.groups:
            return f"nothing fails: {plural(self.pruned, 'group')} pruned, largest error {self.max_error:.2g} of the output's spread"
        lines = [f"{len(self.groups)} of {plural(self.pruned, 'group')} fail together ({self.tried} prunes tried):"]
        lines += [f"  {g}" for g in self.groups]
        lines.append(
            f"the first difference: {self.where or 'no single node can be named'} (error {self.max_error:.2g})"
        )
        return "\n".join(lines)


def ddmin(items: Sequence[T], fails: Callable[[list[T]], bool]) -> list[T]:
    """A sublist that fails, of which no single item can be left out. `fails(items)` must hold.

    >>> ddmin(range(8), lambda some: 2 in some and 5 in some)
    [2, 5]
    """
    left, parts = list(items), 2
    while len(left) > 1:
        step = -(-len(left) // parts)
        chunks = [left[i : i + step] for i in range(0, len(left), step)]
        rests = [[x for x in left if x not in c] for c in chunks] if len(chunks) > 2 else []
        found = next((c for c in [*chunks, *rests] if fails(c)), None)
        if found is not None:
            parts = 2 if found in chunks else max(parts - 1, 2)
            left = found
        elif parts >= len(left):
            break
        else:
            parts = min(2 * parts, len(left))
    return left


def bisect(
    model: Model, coupling: Coupling, *, ratio: float = 0.5, seed: int = 0, sizes: dict[str, int] | None = None
) -> Fault:
    """Prune every group by `ratio`; where the result is not the masked network, find who is at fault."""
    whole = plan(model, coupling, ratio=ratio)
    masks = {g["id"]: g["removed"] for g in whole.groups if g["removed"]}
    results: dict[tuple[str, ...], Verification] = {}

    def test(names: Sequence[str]) -> Verification:
        key = tuple(names)
        if key not in results:
            results[key] = prune_these(model, coupling, {n: masks[n] for n in names}, seed, sizes)
        return results[key]

    everything = list(masks)
    if (all_of_it := test(everything)).ok:
        return Fault([], "", all_of_it.max_error, len(everything), len(results))
    guilty = ddmin(everything, lambda names: not test(names).ok)
    failure = test(guilty)
    return Fault(guilty, failure.where, failure.max_error, len(everything), len(results))


def prune_these(
    model: Model, coupling: Coupling, removed: dict[str, list[int]], seed: int, sizes: dict[str, int] | None
) -> Verification:
    """Remove these channels and compare; an error on the way is a failure too."""
    import numpy as np

    chosen = {}
    for g in coupling.groups:
        if g.id in removed:
            chosen[g.id] = np.isin(np.arange(g.size), removed[g.id])
    decided = from_masks(coupling, chosen)
    try:
        return verify(model, apply(model, decided, sizes=sizes).model, decided, count=1, seed=seed, sizes=sizes)
    except SpaError as error:
        if isinstance(error, Unsupported) or "drawn input" in error.what:
            raise  # nothing can be said where the dense network itself does not run
        return Verification(False, float("inf"), 0, 0.0, f"{error.what}: {error.where}")
