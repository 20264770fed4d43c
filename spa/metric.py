"""A user's own metric: a function of theirs that says how good a network is, higher being better."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spa.errors import CheckFailed, UsageError
from spa.model import Model

FORM = "--eval module:function, a function of the path of an .onnx file that returns a number, higher is better"


@dataclass(frozen=True)
class Metric:
    """`function(path)`, or `function(model)` where its parameter is annotated as `spa.Model`."""

    function: Callable[[Any], Any]
    name: str

    def __call__(self, model: Model) -> float:
        """The metric of a network; NaN is passed on. Raises `CheckFailed` where the function raises, `UsageError` where
        it returns no number."""
        try:
            if takes_model(self.function):
                value = self.function(model)
            else:
                with tempfile.TemporaryDirectory(prefix="spa-eval-") as folder:
                    value = self.function(str(model.save(Path(folder) / f"{model.name}.onnx")))
        except Exception as error:  # theirs: of any kind
            frame = traceback.extract_tb(error.__traceback__)[-1]
            what = f"the metric {self.name} raised {type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
            raise CheckFailed(
                what, f"{frame.filename}, line {frame.lineno}", "call it on the .onnx file yourself"
            ) from error
        try:
            if isinstance(value, bool | str | bytes):
                raise TypeError
            return float(value)
        except (TypeError, ValueError):
            what = f"the metric {self.name} returned {type(value).__name__} {value!r:.80}, not a number"
            raise UsageError(what, hint=FORM) from None

    def of_dense(self, model: Model) -> float:
        """The metric to hold against. Raises `CheckFailed` where it is not finite."""
        value = self(model)
        if not math.isfinite(value):
            raise CheckFailed(
                f"the metric {self.name} of the network as it is is {value}", hint="a metric that it passes"
            )
        return value


def takes_model(function: Callable[[Any], Any]) -> bool:
    """Is the first parameter annotated as a `Model`?"""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a builtin tells nothing
        return False
    kind = parameters[0].annotation if parameters else None
    return kind is Model or (isinstance(kind, str) and kind.rpartition(".")[2] == "Model")


def as_metric(source: Metric | Callable[[Any], Any] | str) -> Metric:
    """A metric from a function, or from `module:function` with the working directory first on the import path.

    Raises `UsageError` for anything that is no such thing."""
    if isinstance(source, Metric):
        return source
    if callable(source):
        return Metric(source, getattr(source, "__qualname__", None) or type(source).__name__)
    module, _, name = source.partition(":")
    if not module or not name or module.endswith(".py"):
        stem = module.removesuffix(".py").replace("/", ".")
        raise UsageError(f"'{source}' is not module:function", hint=f"{stem}:{name or 'function'}" if stem else FORM)
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except ImportError as error:
        raise UsageError(f"--eval cannot import '{module}': {error}", f"working directory {here}", FORM) from error
    except AttributeError as error:
        raise UsageError(
            f"--eval finds no '{name}' in '{module}': {error}", str(getattr(found, "__file__", "")), FORM
        ) from error
    except Exception as error:  # the module itself fails
        raise UsageError(f"--eval cannot import '{module}': {type(error).__name__}: {error}", hint=FORM) from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise UsageError(f"--eval {source} is {type(found).__name__}, not a function", hint=FORM)
    return Metric(found, source)
