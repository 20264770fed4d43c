"""Judging: what a pruned network forgets, as against the dense one, on inputs it was not fitted to.

One number hides who pays. Pruning at the same accuracy moves its errors to some classes and to inputs that were hard
before (Hooker, Courville, Clark, Dauphin, Frome: What Do Compressed Deep Neural Networks Forget?, arXiv 1911.05248),
so beside the error of the outputs there is, for every output that looks like class scores: how often the answer stays,
which classes change theirs, and the inputs at which it happens (their "pruning identified exemplars", here of one
pruned network). No labels are needed: the dense network's answer is the reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spa.agreement import Deviation, Output, Scores, Tally
from spa.calibration import HELD
from spa.errors import CheckFailed, UsageError
from spa.inputs import Feeds
from spa.verification import Session

if TYPE_CHECKING:
    from spa.model import Model
    from spa.planning import Plan


@dataclass(frozen=True)
class Judgement:
    """`error`: || y - y' ||_2 / || y ||_2 over all floating-point outputs of all inputs; `inputs` counts samples.
    `held_back`: on calibration inputs that were kept out of the fit."""

    error: float
    inputs: int
    outputs: tuple[Output, ...]
    held_back: bool = False

    @property
    def scores(self) -> Scores | None:
        """Of the output most likely meant as the answer: one of probabilities first, else the first with class scores."""
        found = [o.scores for o in self.outputs if o.scores is not None]
        return next((s for s in found if s.probabilities), found[0] if found else None)

    def to_json(self) -> dict[str, Any]:
        """Plain data; `value` is the drift, and the answer's `top1`, `top5`, `kl` stand beside it."""
        found: dict[str, Any] = {"value": self.error, "inputs": self.inputs, "held_back": self.held_back}
        if (s := self.scores) is not None:
            found |= {"top1": s.top1, "top5": s.top5, "kl": s.kl}
            found["worst_class"] = asdict(s.forgotten[0]) if s.forgotten else None
        return found | {"outputs": [asdict(o) for o in self.outputs]}

    def __str__(self) -> str:
        return line(self.to_json())


def line(drift: dict[str, Any]) -> str:
    """The JSON of a judgement in one line."""
    parts = [f"drift {drift['value']:.3g}"]
    if drift.get("top1") is not None:
        parts = [f"top-1 agreement {drift['top1']:.1%}", *parts, f"KL {drift['kl']:.2g}"]
    worst = drift.get("worst_class")
    where = f"{'held back' if drift.get('held_back') else 'judged'} ({drift['inputs']} inputs): "
    return (
        where
        + ", ".join(parts)
        + (f"; worst class {worst['label']} ({worst['changed']} of {worst['count']})" if worst else "")
    )


def fitted(feeds: Iterable[Feeds]) -> list[Feeds]:
    """All but what is held back; drawn inputs stay known as such."""
    kind = type(feeds) if isinstance(feeds, list) else list
    return kind(feed for number, feed in enumerate(feeds) if number % HELD != HELD - 1)


def held_back(feeds: Iterable[Feeds]) -> tuple[list[Feeds], list[int], bool]:
    """The feeds that calibration holds back, the number of the first sample of each among all, and whether there are any:
    too few feeds are all fitted to, and then all are returned."""
    every, first, at = list(feeds), [], 0
    for feed in every:
        first.append(at)
        at += samples(feed)
    chosen = range(HELD - 1, len(every), HELD)
    which = list(chosen) or list(range(len(every)))
    return [every[i] for i in which], [first[i] for i in which], bool(chosen)


def judge_plan(
    dense: Model,
    plan: Plan,
    calib: Iterable[Feeds],
    *,
    repair: bool = True,
    sizes: dict[str, int] | None = None,
    fold: bool = True,
) -> Judgement:
    """`judge` what a plan does, on the calibration inputs that are held back; indices are those of samples among all of
    `calib`.

    The network that ships is mended on all inputs, so no input can judge it: its twin is, mended without those held back
    (the hold-out estimate, then the refit on everything). On inputs that took part, the drift looks a fifth smaller."""
    from spa.pruning import finish

    every = calib if isinstance(calib, list) else list(calib)
    feeds, first, held = held_back(every)
    twin = finish(dense, plan, calib=fitted(every) if repair else None, check=False, sizes=sizes, fold=fold).model
    return judge(dense, twin, feeds, first=first, held=held)


def judge(
    dense: Model,
    pruned: Model,
    feeds: Iterable[Feeds],
    *,
    first: Sequence[int] | None = None,
    labels: Sequence[int] | None = None,
    held: bool = False,
) -> Judgement:
    """Compare the outputs of two networks with the same inputs and outputs, feed by feed, graph optimisations off.

    An output looks like class scores where it is floating-point, of rank 2 or 3, and its last axis has one size of at
    least 2 on all inputs: [N, classes], or [N, T, classes] with a decision per position. Softmax is applied unless the
    rows are probabilities. `first`: number of the first sample of each feed, counted through by default. `labels`: the
    true class per sample, for outputs of rank 2. Memory is bounded by one feed's outputs and a few numbers per class.
    Raises `CheckFailed` where the outputs are not the same ones or the pruned network does not run."""
    a, b = Session(dense), Session(pruned)
    if a.outputs != b.outputs:
        raise CheckFailed(f"the outputs are {b.outputs} instead of {a.outputs}", hint="two versions of one network")
    tallies = [Tally(name, None if labels is None else np.asarray(labels)) for name in a.outputs]
    total = Deviation()
    count = at = 0
    for number, feed in enumerate(feeds):
        expected = a.run(feed)
        try:
            got = b.run(feed)
        except Exception as error:  # onnxruntime's errors share no type
            raise CheckFailed(f"the pruned network does not run: {str(error).splitlines()[0][:300]}") from None
        at = at if first is None else first[number]
        for tally, x, y in zip(tallies, expected, got, strict=True):
            total.add(x, y)
            tally.add(x, y, at, samples(feed))
        at += samples(feed)
        count += samples(feed)
    if not count:
        raise UsageError("no inputs to judge by")
    return Judgement(total.relative, count, tuple(t.output() for t in tallies), held)


def samples(feed: Feeds) -> int:
    return max((len(a) for a in feed.values() if a.ndim), default=1)
