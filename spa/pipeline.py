"""The pass contract, and pipelines of passes in one text form: `slice{ratio=0.5},fold`.

A pass is a frozen dataclass whose fields are its options, with `name: ClassVar[str]` and `run(model) -> Result`.
It never changes the model it is given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from spa.model import Model
    from spa.plan import Plan


@dataclass(frozen=True)
class Result:
    """What a pass gives back: the new model, the plan where channels were removed, and facts worth reporting."""

    model: Model
    plan: Plan | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class Pass(Protocol):
    name: ClassVar[str]

    def run(self, model: Model) -> Result: ...
