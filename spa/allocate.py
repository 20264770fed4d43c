"""How much where: a budget and scores in, channels to remove per group out.

Every group offers its channels in the order of their scores, in chunks of `align`. `local` scope removes the same share
of every group, `global` the lowest scores of the whole network. Either way the offers form one sequence, and the budget
is met by bisection over how much of it is taken, to within one chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spa.cost import Budget
from spa.coupling import Coupling, Group
from spa.coupling.analysis import Mask
from spa.errors import CheckFailed
from spa.importance.magnitude import Score

Chosen = dict[str, Mask]


@dataclass(frozen=True)
class Chunk:
    """Channels of one group that go together."""

    key: float  # place in the sequence: lower goes first
    group: str
    channels: tuple[int, ...]


def protected(group: Group, score: Score) -> set[int]:
    """The best channel of every axis the group runs through: no axis may become empty."""
    keep: set[int] = set()
    for labels in {v.tobytes(): v for v in group.labels.values()}.values():
        present = np.unique(labels[labels >= 0])
        keep.add(int(present[np.argmax(score[present])]))
    return keep


def offers(groups: list[Group], scores: dict[str, Score], scope: str, align: int) -> list[Chunk]:
    """All chunks that may go, in the order in which they do."""
    found: list[Chunk] = []
    for number, group in enumerate(groups):
        score = scores[group.id]
        keep = protected(group, score)
        order = [int(i) for i in np.argsort(score, kind="stable") if int(i) not in keep]
        step = align if group.size >= 4 * align else 1
        at = 0
        while at < len(order):
            take = group.size % step or step if at == 0 else step  # the first chunk brings the rest to a multiple
            if at + take > len(order) and step > 1:
                break
            channels = tuple(order[at : at + take])
            at += len(channels)
            key = at / group.size if scope == "local" else float(score[channels[-1]])
            found.append(Chunk(key + 1e-12 * number, group.id, channels))
    return sorted(found, key=lambda c: (c.key, c.group))


def chosen(coupling: Coupling, chunks: list[Chunk]) -> Chosen:
    masks = {g.id: np.zeros(g.size, bool) for g in coupling.groups}
    for c in chunks:
        masks[c.group][list(c.channels)] = True
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


def by_ratio(groups: list[Group], sequence: list[Chunk], ratio: float, scope: str) -> list[Chunk]:
    """A share of the channels: of every group (local), or of all together (global)."""
    per_group = {g.id: ratio * g.size + 0.5 for g in groups}  # to the nearest whole channel
    room = {"": ratio * sum(g.size for g in groups)} if scope == "global" else per_group
    taken = []
    for chunk in sequence:
        key = "" if scope == "global" else chunk.group
        if len(chunk.channels) <= room[key]:
            room[key] -= len(chunk.channels)
            taken.append(chunk)
        else:
            room[key] = 0
    return taken


def bisect(sequence: list[Chunk], fits: Callable[[list[Chunk]], bool]) -> int:
    """The shortest prefix that fits, assuming that longer ones fit too; len + 1 where not even all of it does."""
    low, high = 0, len(sequence) + 1
    while low < high:
        middle = (low + high) // 2
        if middle > len(sequence) or fits(sequence[:middle]):
            high = middle
        else:
            low = middle + 1
    return low


def by_cost(
    coupling: Coupling, sequence: list[Chunk], kind: str, limit: float, *, overhead: float = 0.0
) -> list[Chunk]:
    """As few chunks as bring the total of `kind` (macs, params, bytes) down to `limit`.

    Raises `CheckFailed`, saying how far it gets, where all chunks together do not suffice."""
    budget = Budget(coupling)

    def total(chunks: list[Chunk]) -> float:
        return budget.of(kind, coupling.removal(chosen(coupling, chunks))) + overhead

    length = bisect(sequence, lambda chunks: total(chunks) <= limit)
    if length > len(sequence):
        least, full = total(sequence), total([])
        raise CheckFailed(
            f"the budget of {limit:,.0f} {kind} cannot be met: with all that can be removed {least:,.0f} are left ({least / max(full, 1):.1%} of {full:,.0f})",
            hint="a larger budget; `spa explain` says what is blocked and why",
        )
    return sequence[:length]
