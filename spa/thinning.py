"""Thinning as the last step of a run: the order of channels, the patterns, what proves them, and what judges them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spa.inputs import Feeds
    from spa.model import Model
    from spa.pipeline import Result
    from spa.planning import Plan


@dataclass(frozen=True)
class Thinning:
    """How to thin out: a `pattern` for all layers, or those of a plan's `sparsity` (`layers`); `dense`: layers (glob)
    left alone; `rules`: glob=pattern for some layers, the last that matches. `rearranged`: channels are put in the order
    in which the patterns lose least; `refit`: weights that stay are moved."""

    pattern: str | None = None
    layers: dict[str, str] | None = None
    dense: Sequence[str] = ()
    rules: Sequence[str] = ()
    rearranged: bool = True
    refit: bool = True
    seed: int = 0
    targets: Sequence[str] = ()  # where it is to be fast

    def __bool__(self) -> bool:
        return bool(self.pattern or self.layers or self.rules)

    def of(
        self,
        model: Model,
        calib: list[Feeds] | None,
        *,
        check: bool = False,
        inputs: list[Feeds] | None = None,
        sizes: dict[str, int] | None = None,
    ) -> Result:
        """A thin `model`. `check`: that another order of channels changes nothing is proven, on `inputs` or with `sizes`."""
        from spa.passes.rearrange import rearrange
        from spa.passes.sparsify import replayed, sparsify

        rules = [*replayed(self.layers or {}), *self.rules]
        facts: dict[str, Any] = {}
        if self.rearranged:
            moved = rearrange(
                model,
                self.pattern,
                calib=calib,
                layers=rules,
                dense=self.dense,
                seed=self.seed,
                check=check,
                inputs=inputs,
                sizes=sizes,
            )
            model, facts = moved.model, moved.facts
        found = sparsify(model, self.pattern, calib=calib, layers=rules, dense=self.dense, refit=self.refit)
        return replace(found, facts={**facts, **found.facts})

    def again(self, model: Model, calib: list[Feeds] | None, like: Result) -> Model:
        """A thin `model` in the order, patterns and masks of `like`, which was made by `of` from a network of the same
        structure; weights are fitted anew."""
        from spa.passes.rearrange import reordered
        from spa.passes.sparsify import replayed, sparsify

        patterns = {layer["weight"]: layer["pattern"] for layer in like.facts["sparsity"]["layers"]}
        model = reordered(model, like.facts.get("orders", {}))
        return sparsify(model, None, calib=calib, layers=replayed(patterns), refit=self.refit, like=like.model).model


def thinned(
    model: Model,
    result: Result,
    how: Thinning,
    calib: list[Feeds] | None,
    *,
    check: bool = True,
    inputs: list[Feeds] | None = None,
    sizes: dict[str, int] | None = None,
) -> Result:
    """`result`, of pruning `model`, with thin layers; facts under `sparsity`.

    The network differs from the dense one by intent, so there is no comparison: every layer is held against its
    pattern, and unless `check` is False the network is run. Raises `CheckFailed` where either fails."""
    from spa.errors import CheckFailed
    from spa.sparsity.speed import effective_macs
    from spa.verification import Session, feeds_for

    found = how.of(result.model, calib, check=check, inputs=inputs, sizes=sizes)
    facts = found.facts["sparsity"] | ({"rearranged": found.facts["rearranged"]} if "rearranged" in found.facts else {})
    if check:
        feeds = feeds_for(Session(model), model, 1, how.seed, inputs, sizes)
        try:
            Session(found.model).run(feeds[0])
        except Exception as error:  # onnxruntime's errors share no type
            raise CheckFailed(f"the thin network does not run: {str(error).splitlines()[0][:300]}") from None
    facts["effective_macs"] = effective_macs(found.model, facts["layers"], how.targets, sizes)
    plan = result.plan
    if plan is not None:
        patterns = {layer["weight"]: layer["pattern"] for layer in facts["layers"]}
        steps = ["rearrange"] * bool(facts.get("rearranged")) + ["sparsify"]
        plan = replace(plan, pipeline=",".join([plan.pipeline, *steps]), sparsity=patterns)
    orders = found.facts.get("orders", {})
    return replace(found, plan=plan, facts={**result.facts, "sparsity": facts, "orders": orders})


def judge_thin(
    model: Model,
    decided: Plan,
    how: Thinning,
    calib: list[Feeds],
    like: Result,
    *,
    repair: bool = True,
    sizes: dict[str, int] | None = None,
    fold: bool = True,
) -> dict[str, Any]:
    """The JSON's "drift", of a twin that was cut and fitted without the inputs held back (`spa.judging.judge_plan`).

    `like`: the network that was thinned out; the twin takes its order of channels, patterns and masks, so that nothing
    is searched twice."""
    from spa.judging import fitted, held_back, judge
    from spa.pruning import finish

    held, first, apart = held_back(calib)
    rest = fitted(calib) if apart else calib
    cut = finish(model, decided, calib=rest if repair else None, check=False, sizes=sizes, fold=fold).model
    return judge(model, how.again(cut, rest, like), held, first=first, held=apart).to_json()
