"""spa: make trained networks small and fast, starting from nothing but an ONNX file.

    import spa
    model = spa.load("model.onnx")
    result = spa.prune(model, macs=0.5)

Names are imported when they are first used, so that `import spa` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from spa._version import __version__

if TYPE_CHECKING:
    from spa.codegen.bundle import Bundle as Bundle
    from spa.codegen.bundle import compile as compile
    from spa.coupling import Coupling as Coupling
    from spa.coupling import Group as Group
    from spa.coupling import analyze as analyze
    from spa.model import Model as Model
    from spa.model import load as load
    from spa.pipeline import Pipeline as Pipeline
    from spa.plan import Plan as Plan
    from spa.plan import plan as plan
    from spa.prune import Result as Result
    from spa.prune import apply as apply
    from spa.prune import prune as prune
    from spa.verify import verify as verify

_WHERE = {
    "load": "spa.model",
    "Model": "spa.model",
    "analyze": "spa.coupling",
    "Coupling": "spa.coupling",
    "Group": "spa.coupling",
    "plan": "spa.plan",
    "Plan": "spa.plan",
    "apply": "spa.prune",
    "prune": "spa.prune",
    "Result": "spa.prune",
    "verify": "spa.verify",
    "Pipeline": "spa.pipeline",
    "compile": "spa.codegen.bundle",
    "Bundle": "spa.codegen.bundle",
}

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'spa' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value
