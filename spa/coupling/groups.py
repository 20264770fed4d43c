"""From the axis graph to groups: sets of indices that must be removed together.

Slots tied index by index are one *dim* (networkx components of the `same` relation). A class is the closure of one
index under all relations; a group is the family of classes that grow from the indices of one dim.

A merged axis e = (i, j) obeys "e is removed iff i or j is", so a removal may come from either factor, and each factor
is the seed of a group of its own: heads and head dimensions, groups of a convolution and channels within them. Where a
class reaches a merged axis from elsewhere, one factor has to carry it: the one along whose fibres fewest classes merge.
Unions of removals stay consistent, so groups may be pruned independently even where they overlap.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from spa.coupling.axes import Axes, Index, Reason, Slot

Labels = npt.NDArray[np.int64]  # per index of a dim: the class it belongs to, -1 for none


@dataclass
class Dims:
    """Slots contracted by `same`: `of` maps a slot to its dim, and the relations now hold between dims."""

    of: dict[Slot, int]
    slots: list[list[Slot]]
    size: list[int]
    graph: nx.MultiGraph  # nodes: dims; edges carry the index maps of `link`
    factors: list[tuple[int, list[tuple[int, Index]]]]  # (merged, [(factor, index in it per index of merged)])
    merged: dict[int, list[int]]  # dim -> factorings it is the product of
    part: dict[int, list[tuple[int, int]]]  # dim -> (factoring, place) where it is a factor
    frozen: dict[int, list[tuple[Index | None, Reason]]]

    def stuck(self, dim: int) -> npt.NDArray[np.bool_]:
        """Which indices must stay."""
        mask = np.zeros(self.size[dim], bool)
        for index, _ in self.frozen.get(dim, ()):
            mask[slice(None) if index is None else index] = True
        return mask


def contract(axes: Axes) -> Dims:
    ties = nx.Graph()
    ties.add_nodes_from(s for s, n in axes.size.items() if n > 1)
    ties.add_edges_from((a, b) for a, b, _ in axes.sames)
    of: dict[Slot, int] = {}
    slots: list[list[Slot]] = []
    order = {s: i for i, s in enumerate(axes.size)}
    for component in nx.connected_components(ties):
        members = sorted(component, key=order.__getitem__)
        of.update(dict.fromkeys(members, len(slots)))
        slots.append(members)
    size = [axes.size[m[0]] for m in slots]
    graph = nx.MultiGraph()
    graph.add_nodes_from(range(len(slots)))
    for a, b, i, j, _ in axes.links:
        graph.add_edge(of[a], of[b], ends=(of[a], of[b]), maps=(i, j))
    factors: list[tuple[int, list[tuple[int, Index]]]] = []
    merged: dict[int, list[int]] = defaultdict(list)
    part: dict[int, list[tuple[int, int]]] = defaultdict(list)
    seen = set()
    for f in axes.factors:
        key = (of[f.merged], tuple((of[s], stride) for s, stride, _ in f.parts))
        if key in seen:
            continue
        seen.add(key)
        e = np.arange(axes.size[f.merged])
        merged[of[f.merged]].append(len(factors))
        for place, (s, _, _) in enumerate(f.parts):
            part[of[s]].append((len(factors), place))
        factors.append((of[f.merged], [(of[s], e // stride % n) for s, stride, n in f.parts]))
    frozen: dict[int, list[tuple[Index | None, Reason]]] = defaultdict(list)
    for slot, why in axes.frozen.items():
        if slot in of:
            frozen[of[slot]] += why
    return Dims(of, slots, size, graph, factors, merged, part, frozen)


@dataclass
class Closure:
    """Classes grown from one dim: labels per dim reached, and which classes must stay and why."""

    seed: int
    count: int
    labels: dict[int, Labels]
    stuck: npt.NDArray[np.bool_]
    reasons: list[tuple[Labels, Reason]]  # (classes, why)


@dataclass
class _Growth:
    dims: Dims
    labels: dict[int, Labels] = field(default_factory=dict)
    pairs: list[tuple[Labels, Labels]] = field(default_factory=list)
    active: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    queue: list[int] = field(default_factory=list)

    def offer(self, dim: int, index: Index, incoming: Labels) -> None:
        """Index[k] of dim joins class incoming[k]; -1 offers nothing."""
        given = incoming >= 0
        if not given.any():
            return
        index, incoming = index[given], incoming[given]
        here = self.labels.get(dim)
        if here is None:
            here = self.labels[dim] = np.full(self.dims.size[dim], -1)
        old = here[index]
        fresh = old < 0
        if fresh.any():
            here[index[fresh]] = incoming[fresh]
            if dim not in self.queue:
                self.queue.append(dim)
        clash = here[index] != incoming
        if clash.any():
            self.pairs.append((here[index[clash]], incoming[clash]))

    def spread(self, dim: int) -> None:
        here, dims = self.labels[dim], self.dims
        for _, other, data in dims.graph.edges(dim, data=True):
            for mine, its in ((0, 1), (1, 0)):
                if data["ends"][mine] == dim and data["ends"][its] == other:
                    self.offer(other, data["maps"][its], here[data["maps"][mine]])
                    if other != dim:
                        break
        for f, place in dims.part.get(dim, ()):
            self.active[f].add(place)
            merged, parts = dims.factors[f]
            self.offer(merged, np.arange(dims.size[merged]), here[parts[place][1]])
            if dims.merged[merged]:
                self.push(f)
        for f in dims.merged.get(dim, ()):
            self.push(f)

    def push(self, f: int) -> None:
        """A merged axis tells the factors that carry it what it knows."""
        merged, parts = self.dims.factors[f]
        if merged in self.labels:
            for place in self.active[f]:
                self.offer(parts[place][0], parts[place][1], self.labels[merged])

    def choose(self) -> bool:
        """Let one factor carry a merged axis that none carries yet; False where all are carried."""
        for dim, here in self.labels.items():
            for f in self.dims.merged.get(dim, ()):
                if not self.active[f] and (here >= 0).any():
                    _, parts = self.dims.factors[f]
                    self.active[f].add(max(range(len(parts)), key=lambda t: (self.worth(here, *parts[t]), -t)))
                    self.push(f)
                    self.spread(dim)
                    return True
        return False

    def worth(self, here: Labels, factor: int, fibre: Index) -> int:
        """How many removable classes are left when each fibre becomes one."""
        touched = here >= 0
        names, local = np.unique(here[touched], return_inverse=True)
        count, component = joined(len(names) + self.dims.size[factor], [(local, fibre[touched] + len(names))])
        lost = np.unique(component[len(names) :][self.dims.stuck(factor)])
        alive = set(component[: len(names)].tolist()) - set(lost.tolist())
        return len(alive) * count + len(names)


def joined(n: int, pairs: Iterable[tuple[Labels, Labels]]) -> tuple[int, Labels]:
    """Components of n points under pairs: their number, and per point its component."""
    pairs = list(pairs)
    if not pairs:
        return n, np.arange(n)
    a, b = (np.concatenate([p[k] for p in pairs]) for k in (0, 1))
    count, component = connected_components(coo_array((np.ones(len(a), bool), (a, b)), shape=(n, n)), directed=False)
    return int(count), component.astype(np.int64)


def close(dims: Dims, seed: int, start: Labels) -> Closure:
    """Grow classes from the indices of `seed` that `start` labels (with 0, 1, ...)."""
    growth = _Growth(dims, labels={seed: start.copy()}, queue=[seed])
    while growth.queue or growth.choose():
        while growth.queue:
            growth.spread(growth.queue.pop(0))
    count, component = joined(int(start.max()) + 1, growth.pairs)
    labels = {d: np.where(v >= 0, component[v], -1) for d, v in growth.labels.items()}
    stuck, reasons = np.zeros(count, bool), []
    for dim, here in labels.items():
        for index, reason in dims.frozen.get(dim, ()):
            hit = here if index is None else here[index]
            hit = np.unique(hit[hit >= 0])
            if len(hit):
                stuck[hit] = True
                reasons.append((hit, reason))
    return Closure(seed, count, labels, stuck, reasons)


def closures(dims: Dims, relevant: npt.NDArray[np.bool_]) -> list[Closure]:
    """All families of classes. Seeds are factors first, then every dim that is not itself a product, each with the
    indices that no earlier family holds. `relevant[dim]`: does its connected region hold a parameter at all?"""
    covered: dict[int, npt.NDArray[np.bool_]] = {}
    found = []
    order = [d for d in range(len(dims.size)) if d in dims.part and d not in dims.merged]
    order += [d for d in range(len(dims.size)) if d not in dims.part and d not in dims.merged]
    for seed in order:
        if not relevant[seed]:
            continue
        free = ~covered.get(seed, np.zeros(dims.size[seed], bool))
        if not free.any():
            continue
        start = np.where(free, np.cumsum(free) - 1, -1)
        closure = close(dims, seed, start)
        for dim, here in closure.labels.items():
            if dim not in dims.merged:
                covered[dim] = covered.get(dim, np.zeros(dims.size[dim], bool)) | (here >= 0)
        found.append(closure)
    return found
