"""Which channel stands where: permutations that lose least to a pattern, and what of an axis one may permute at all.

A pattern looks at neighbours: M columns that compete for N places, R rows that share a block. What it costs depends on
who the neighbours are, and nothing else in the network does. The search maximises the score that the pattern keeps,

    top    sum over blocks and features of the N largest of the M scores in a block         N:M, along columns
    sum    sum over blocks and features of max(0, sum of the scores in a block - t)         blocks, along either side

where t is the layer's threshold: sum of the k largest u = min over t of  k t + sum max(0, u - t). Swaps of two channels
are taken while they gain, as in Pool & Yu 2021 (NeurIPS, "Channel Permutations for N:M Sparsity", section 4), here with
all candidates for one channel in one array operation; for sums, blocks are first grown greedily from their largest rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Index = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]

SWEEPS = 12
ENOUGH = 3e-4  # of the score: a sweep that gains less is the last
WORK = 1e9  # scores looked at per sweep; beyond, a channel is tried against a sample of the others


@dataclass(eq=False)
class Term:
    """One side of one layer: scores [positions, features] as they stand, and the position of each place (-1: none).

    A place is where a channel may stand; positions in no place hold scores that compete, but cannot move."""

    scores: Scores
    where: Index
    width: int  # of a block
    keep: int = 0  # of a block, per feature; 0: scores of a block are summed
    threshold: float = 0.0  # for sums
    pool: tuple[int, int] = (0, 0)  # for sums: of so many features side by side (second) the first number stays
    _rest: list[Scores] = field(default_factory=list)
    _value: Scores = field(init=False)

    def __post_init__(self) -> None:
        lacking = -len(self.scores) % self.width
        self.scores = np.pad(self.scores, ((0, lacking), (0, 0))).astype(np.float32)

    @property
    def blocks(self) -> Scores:
        return self.scores.reshape(-1, self.width, self.scores.shape[1])

    def total(self) -> float:
        """The score that is kept."""
        return float(self.values(slice(None)).sum(dtype=np.float64))

    def values(self, at: Any) -> Scores:
        """What blocks are worth."""
        held = self.blocks[at]
        if self.keep < self.width and self.keep:
            held = np.partition(held, self.width - self.keep, axis=1)[:, self.width - self.keep :]
        found: Scores = held.sum((1, 2)) if self.keep else self.worth(held.sum(1))
        return found

    def worth(self, summed: Scores) -> Scores:
        """[..., features] -> [...]"""
        n, m = self.pool
        if m:
            lacking = -summed.shape[-1] % m
            padded = np.pad(summed, [(0, 0)] * (summed.ndim - 1) + [(0, lacking)])
            pools = padded.reshape(*summed.shape[:-1], -1, m)
            kept: Scores = np.partition(pools, m - n, axis=-1)[..., m - n :].sum((-1, -2))
            return kept
        found: Scores = np.maximum(summed - np.float32(self.threshold), 0).sum(-1)
        return found

    def prepare(self, blocks: Index | None = None) -> None:
        """What each block holds besides one position, for every position: of some blocks only, where given."""
        if not self._rest:
            self._rest = [np.empty_like(self.scores) for _ in range(2 if self.keep else 1)]
            blocks, self._value = None, self.values(slice(None))
        at: Any = slice(None) if blocks is None else blocks
        held, self._value[at] = self.blocks[at], self.values(at)
        parts = [r.reshape(-1, self.width, r.shape[1]) for r in self._rest]
        if not self.keep:
            parts[0][at] = held.sum(1, keepdims=True) - held
            return
        for p in range(self.width):
            others = -np.sort(-np.delete(held, p, axis=1), axis=1)
            parts[0][at, p] = others[:, : self.keep].sum(1)
            parts[1][at, p] = others[:, self.keep - 1] if self.keep <= others.shape[1] else 0

    def with_at(self, position: Any, scores: Scores) -> Scores:
        """What a block is worth when other scores stand at a position of it; both broadcast."""
        if self.keep:
            base, last = self._rest[0][position], self._rest[1][position]
            found: Scores = (base + np.maximum(scores - last, 0)).sum(-1)
            return found
        return self.worth(self._rest[0][position] + scores)

    def gains(self, place: int, others: Index) -> npt.NDArray[np.float64]:
        """What swapping a place with each of others brings."""
        p, q = int(self.where[place]), self.where[others]
        if p < 0:
            return np.zeros(len(others))
        mine, theirs = self.scores[p], self.scores[q]
        gain = self.with_at(p, theirs) + self.with_at(q, mine)
        gain = gain - self._value[p // self.width] - self._value[q // self.width]
        return np.where((q < 0) | (q // self.width == p // self.width), 0, gain).astype(np.float64)

    def swap(self, a: int, b: int) -> None:
        p, q = int(self.where[a]), int(self.where[b])
        if p >= 0 and q >= 0:
            self.scores[[p, q]] = self.scores[[q, p]]
            self.prepare(np.unique([p // self.width, q // self.width]))


def search(terms: Sequence[Term], segments: Index, seed: int = 0) -> Index:
    """tau [places]: the channel that shall stand at each place. Channels move within their segment only."""
    if not terms:
        return np.arange(len(segments))
    start, trial = np.arange(len(segments)), list(terms)
    if all(not t.keep for t in terms):
        blocks = grown(terms, segments)
        other = [arranged(t, blocks) for t in terms]
        if sum(t.total() for t in other) > sum(t.total() for t in trial):
            start, trial = blocks, other
    return swapped(trial, segments, start, seed)


def arranged(term: Term, tau: Index) -> Term:
    """A copy with the channels at the places that tau gives them."""
    scores, there = term.scores.copy(), term.where >= 0
    scores[term.where[there]] = term.scores[term.where[tau[there]]]
    return Term(scores, term.where, term.width, term.keep, term.threshold, term.pool)


def swapped(terms: Sequence[Term], segments: Index, start: Index, seed: int) -> Index:
    """Swaps while they gain; `terms` stand arranged by `start`, and are left as the result has them."""
    rng, tau = np.random.default_rng(seed), start.copy()
    features = sum(t.scores.shape[1] for t in terms)
    members = {s: np.flatnonzero(segments == s) for s in np.unique(segments)}
    limit = max(64, int(WORK / (len(tau) * features)))
    for term in terms:
        term.prepare()
    for _ in range(SWEEPS):
        gained, total = 0.0, sum(t.total() for t in terms)
        for place in rng.permutation(len(tau)):
            others = members[segments[place]]
            if len(others) > limit:
                others = rng.choice(others, limit, replace=False)
            gain = np.sum([t.gains(place, others) for t in terms], axis=0)
            best = int(np.argmax(gain))
            if gain[best] > 1e-6 * max(total, 1e-30) / len(tau):
                gained += float(gain[best])
                other = int(others[best])
                tau[[place, other]] = tau[[other, place]]
                for term in terms:
                    term.swap(int(place), other)
        if gained <= ENOUGH * total:
            break
    return tau


def grown(terms: Sequence[Term], segments: Index) -> Index:
    """Blocks filled one after the other: with the largest channel left, then with those that add most to it.

    Blocks are those of the term with the most features; the other terms count with the same neighbours."""
    lead = max(terms, key=lambda t: t.scores.shape[1] * t.width)
    tau = np.arange(len(segments))
    rows = [t.scores[t.where] * (t.where >= 0)[:, None] for t in terms]
    size = np.sum([r.sum(1) for r in rows], axis=0)
    for segment in np.unique(segments[lead.where >= 0]):
        places = np.flatnonzero((segments == segment) & (lead.where >= 0))
        places = places[np.argsort(lead.where[places], kind="stable")]
        if len(places) * len(places) * sum(r.shape[1] for r in rows) > WORK * 2:
            return np.arange(len(segments))
        left = places[np.argsort(-size[places], kind="stable")]
        block = lead.where[places] // lead.width
        for run in np.split(places, np.flatnonzero(np.diff(block)) + 1):
            sums = [r[left[0]].copy() for r in rows]
            tau[run[0]], left = left[0], left[1:]
            for place in run[1:]:
                more = np.sum([t.worth(s + r[left]) for t, s, r in zip(terms, sums, rows, strict=True)], axis=0)
                best = int(np.argmax(more))
                sums = [s + r[left[best]] for s, r in zip(sums, rows, strict=True)]
                tau[place], left = left[best], np.delete(left, best)
    return tau
