"""How much where: a budget and scores in, channels to remove per group out.

Every group offers its channels in the order of their scores, in chunks of `align`. A `scope` sorts groups into classes:
within a class the lowest scores go first, and of every class the same share goes.

    local        every group is a class of its own: the same share of each
    global       one class: the lowest scores of the whole network
    isomorphic   groups of the same local structure (`spa.isomorphism`; Fang et al., Isomorphic Pruning for Vision Models,
                 arXiv 2407.04616): their scores can be compared, those of others cannot
    lamp         one class, over scores normalised by LAMP (`spa.importance.combine.lamp`, arXiv 2010.07611)

Either way the offers form one sequence, and the budget is met by bisection over how much of it is taken, to within one
chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spa.cost import Budget
from spa.cost_table import CostTable
from spa.coupling import Coupling, Group
from spa.coupling.analysis import Mask
from spa.errors import CheckFailed, UsageError
from spa.importance.tensors import Score
from spa.isomorphism import classes

Chosen = dict[str, Mask]
Index = npt.NDArray[np.int64]
SCOPES = ("local", "global", "isomorphic", "lamp")


@dataclass(frozen=True, eq=False)
class Offers:
    """All chunks that may go, in the order in which they do: chunk k is the channels[starts[k] : starts[k] + width[k]]
    of group number group[k], and of class number kind[k]."""

    groups: Sequence[Group]
    channels: Index
    group: Index  # per chunk, as all below
    kind: Index
    starts: Index
    width: Index
    totals: Index  # channels per class, those that must stay included

    def __len__(self) -> int:
        return len(self.group)

    def take(self, which: Mask | slice) -> Offers:
        """Some of the chunks, in the same order."""
        return Offers(
            self.groups,
            self.channels,
            self.group[which],
            self.kind[which],
            self.starts[which],
            self.width[which],
            self.totals,
        )

    def first(self, count: int) -> Offers:
        return self.take(slice(count))

    def masks(self) -> Chosen:
        """Group id -> the channels in these chunks."""
        sizes = np.array([g.size for g in self.groups], np.int64)
        base = np.cumsum(sizes) - sizes
        flat = np.zeros(int(sizes.sum()), bool)
        place = np.arange(int(self.width.sum())) - np.repeat(np.cumsum(self.width) - self.width, self.width)
        flat[self.channels[np.repeat(self.starts, self.width) + place] + np.repeat(base[self.group], self.width)] = True
        return {g.id: flat[b : b + g.size] for g, b in zip(self.groups, base, strict=True)}


def protected(group: Group, score: Score) -> set[int]:
    """The best channel of every axis the group runs through: no axis may become empty."""
    keep: set[int] = set()
    for labels in {v.tobytes(): v for v in group.labels.values()}.values():
        present = np.unique(labels[labels >= 0])
        keep.add(int(present[np.argmax(score[present])]))
    return keep


def keys(coupling: Coupling, groups: Sequence[Group], scope: str) -> list[Hashable]:
    """The class of every group under a scope (see above)."""
    if scope not in SCOPES:
        raise UsageError(f"no scope is called '{scope}'", hint=f"one of auto, {', '.join(SCOPES)}")
    if scope == "local":
        return [g.id for g in groups]
    return [*classes(coupling, groups)] if scope == "isomorphic" else [""] * len(groups)


def offers(coupling: Coupling, groups: Sequence[Group], scores: dict[str, Score], scope: str, align: int = 1) -> Offers:
    """All chunks that may go, in the order in which they do. Groups without a score offer nothing."""
    groups = [g for g in groups if g.id in scores]
    kinds = keys(coupling, groups, scope)
    number = {key: i for i, key in enumerate(dict.fromkeys(kinds))}
    kind = np.array([number[k] for k in kinds], np.int64)
    totals = np.bincount(kind, [g.size for g in groups], minlength=1).astype(np.int64)
    orders, owner, starts, width = [], [], [], []
    at = 0
    for i, group in enumerate(groups):
        keep = np.zeros(group.size, bool)
        keep[list(protected(group, scores[group.id]))] = True
        order = np.argsort(scores[group.id], kind="stable")
        order = order[~keep[order]]
        step = align if group.size >= 4 * align else 1
        # the first chunk brings the rest to a multiple
        ends = np.arange(group.size % step or step, len(order) + 1, step)
        begins = np.concatenate([[0], ends[:-1]])[: len(ends)]
        orders.append(order)
        owner.append(np.full(len(ends), i))
        starts.append(at + begins)
        width.append(ends - begins)
        at += len(order)

    def flat(parts: list[npt.NDArray[np.int64]]) -> Index:
        return np.concatenate([np.zeros(0, np.int64), *parts])

    table = Offers(groups, flat(orders), flat(owner), kind[flat(owner)], flat(starts), flat(width), totals)
    if not len(table):
        return table
    every = np.concatenate([scores[g.id] for g in groups])
    base = np.cumsum([0, *(g.size for g in groups[:-1])])
    key = every[base[table.group] + table.channels[table.starts + table.width - 1]]
    table = table.take(np.lexsort((table.starts, table.group, key, table.kind)))  # type: ignore[arg-type]
    taken = np.cumsum(table.width)
    first = np.searchsorted(table.kind, np.arange(len(totals)))
    share = (taken - (taken - table.width)[first[table.kind]]) / totals[table.kind]
    return table.take(np.lexsort((np.arange(len(table)), table.group, share)))  # type: ignore[arg-type]


def chosen(coupling: Coupling, taken: Offers) -> Chosen:
    masks = {g.id: np.zeros(g.size, bool) for g in coupling.groups} | taken.masks()
    spare(coupling, masks)
    return {k: m for k, m in masks.items() if m.any()}


def spare(coupling: Coupling, masks: Chosen) -> None:
    """Groups that overlap on an axis may empty it together: then its first index stays, in all of them."""
    while empty := [d for d, gone in coupling.removal(masks).items() if gone.all()]:
        for dim in empty:
            for group in coupling.groups:
                labels = group.labels.get(dim)
                if labels is not None and labels[0] >= 0:
                    masks[group.id][labels[0]] = False


def by_ratio(sequence: Offers, ratio: float) -> Offers:
    """A share of the channels of every class, to the nearest whole channel."""
    order = np.argsort(sequence.kind, kind="stable")
    width, kind = sequence.width[order], sequence.kind[order]
    total = np.cumsum(width)
    first = np.searchsorted(kind, np.arange(len(sequence.totals)))
    within = total - (total - width)[first[kind]] if len(kind) else total
    fits = np.zeros(len(sequence), bool)
    fits[order] = within <= ratio * sequence.totals[kind] + 0.5
    return sequence.take(fits)


def bisect(length: int, fits: Callable[[int], bool]) -> int:
    """The shortest prefix that fits, assuming that longer ones fit too; length + 1 where not even all of it does."""
    low, high = 0, length + 1
    while low < high:
        middle = (low + high) // 2
        if middle > length or fits(middle):
            high = middle
        else:
            low = middle + 1
    return low


def by_cost(
    coupling: Coupling, sequence: Offers, kind: str | CostTable, limit: float, *, overhead: float = 0.0
) -> Offers:
    """As few chunks as bring the total of `kind` (see `Budget.of`) down to `limit`.

    Raises `CheckFailed`, saying how far it gets, where all chunks together do not suffice."""
    budget = Budget(coupling)

    def total(count: int) -> float:
        return budget.of(kind, coupling.removal(chosen(coupling, sequence.first(count)))) + overhead

    length = bisect(len(sequence), lambda count: total(count) <= limit)
    if length > len(sequence):
        least, full = total(len(sequence)), total(0)
        raise CheckFailed(
            f"the budget of {limit:,.0f} {kind} cannot be met: with all that can be removed {least:,.0f} are left ({least / max(full, 1):.1%} of {full:,.0f})",
            hint="a larger budget; `spa explain` says what is blocked and why",
        )
    return sequence.first(length)
