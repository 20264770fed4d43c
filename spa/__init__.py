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
    from spa.checking import check as check
    from spa.codegen.bundle import Bundle as Bundle
    from spa.codegen.bundle import compile as compile
    from spa.coupling import Coupling as Coupling
    from spa.coupling import Group as Group
    from spa.coupling import analyze as analyze
    from spa.model import Model as Model
    from spa.model import load as load
    from spa.pipeline import Pipeline as Pipeline
    from spa.planning import Plan as Plan
    from spa.planning import plan as plan
    from spa.pruning import Result as Result
    from spa.pruning import apply as apply
    from spa.pruning import prune as prune
    from spa.verification import verify as verify

_WHERE = {
    "load": "spa.model",
    "Model": "spa.model",
    "analyze": "spa.coupling",
    "Coupling": "spa.coupling",
    "Group": "spa.coupling",
    "plan": "spa.planning",
    "Plan": "spa.planning",
    "apply": "spa.pruning",
    "prune": "spa.pruning",
    "Result": "spa.pruning",
    "verify": "spa.verification",
    "Pipeline": "spa.pipeline",
    "check": "spa.checking",
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
