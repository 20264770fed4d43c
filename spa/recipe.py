"""A recipe: a whole run of `spa prune` in a TOML file, to be read, changed, committed and run again.

    schema = 1
    model = "digits.onnx"              # paths are relative to the recipe's folder
    targets = ["wasm"]
    seed = 0

    [budget]
    macs = 0.4

    [calibration]
    inputs = "digits.npz"

`KEYS` is the only list of settings: reading, writing (`spa.recipe_text`), the JSON Schema and `spa config show` follow it. The table
[prune] of spa.toml holds the same settings as a project's own defaults.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from spa.errors import UsageError
from spa.pipeline import suggest

SCHEMA = 1
Kind = Literal["text", "number", "integer", "switch", "texts", "file", "inputs", "size", "shapes"]


@dataclass(frozen=True)
class Key:
    """A setting: `table.name` in a recipe, `option` as a parameter of `spa prune`, `flag` on its command line.

    `inverted`: the option says --no-... where the recipe says yes."""

    table: str
    name: str
    option: str
    kind: Kind
    what: str
    flag: str = ""
    inverted: bool = False

    @property
    def path(self) -> str:
        return f"{self.table}.{self.name}" if self.table else self.name

    @property
    def word(self) -> str:
        return self.flag or f"--{self.option.replace('_', '-')}"


KEYS = (
    Key("", "model", "model", "file", "The network to prune."),
    Key("", "targets", "targets", "texts", "What to compile for: host, arm, wasm, cuda.", "--target"),
    Key("", "cuda_arch", "cuda_archs", "text", "Architectures of GPUs for the target cuda.", "--cuda-arch"),
    Key("", "precision", "precision", "text", "Operands of cuda's products: fp16, bf16 or fp32.", "--precision"),
    Key("", "seed", "seed", "integer", "For drawn inputs."),
    Key("budget", "ratio", "ratio", "number", "Remove this share of the channels of every prunable group."),
    Key("budget", "macs", "macs", "number", "Keep at most this share of the multiply-accumulates."),
    Key("budget", "params", "params", "number", "Keep at most this share of the parameters."),
    Key("budget", "size", "size", "size", "Keep the written model under this size, such as 2MB."),
    Key("budget", "latency", "latency", "number", "Keep at most this share of the cost that cost_table gives."),
    Key("budget", "cost_table", "cost_table", "file", "What layers cost on a target."),
    Key("budget", "max_drift", "max_drift", "number", "Remove as much as keeps the outputs' drift under this."),
    Key(
        "budget", "keep_accuracy", "keep_accuracy", "number", "Remove as much as lets the metric fall by at most this."
    ),
    Key("budget", "metric", "evaluate", "text", "Your metric of an .onnx file, module:function.", "--eval"),
    Key("budget", "plan", "apply_plan", "file", "A plan to replay instead of deciding anew."),
    Key("choice", "criterion", "criterion", "text", "What makes a channel matter."),
    Key("choice", "aggregate", "aggregate", "text", "Over the tensors of a group."),
    Key("choice", "normalise", "normalise", "text", "Of a group's scores."),
    Key("choice", "scope", "scope", "text", "Which groups compete: local, global, isomorphic, lamp, auto."),
    Key("choice", "align", "align", "integer", "Keep a multiple of this many channels."),
    Key("choice", "keep", "keep", "texts", "Nodes, weights or groups never touched (globs)."),
    Key("choice", "allow_approximate", "allow_approximate", "switch", "Also where the result is only close."),
    Key("calibration", "inputs", "calib", "inputs", "Inputs to choose by and to repair with."),
    Key("calibration", "gradients", "gradients", "file", "An .npz of gradients by weight's name."),
    Key("calibration", "refine", "refine", "integer", "Try this many other divisions of the budget."),
    Key("calibration", "compensate", "no_compensate", "switch", "Repair the readers of what goes.", inverted=True),
    Key("sparsity", "pattern", "sparsity", "text", "Thin out what is kept: 2:4, block4x1:0.5, unstructured:0.8."),
    Key("sparsity", "dense", "dense", "texts", "Layers left dense (globs)."),
    Key("sparsity", "layers", "layers", "texts", "Patterns of some layers, as in head*=1:4."),
    Key(
        "sparsity",
        "initializer",
        "sparse_initializer",
        "switch",
        "Write weights with few nonzeros as sparse_initializer.",
    ),
    Key("sparsity", "rearrange", "no_rearrange", "switch", "Channels in the order that loses least.", inverted=True),
    Key("passes", "fold", "no_fold", "switch", "Fold constants and normalisations.", inverted=True),
    Key("passes", "pipeline", "pipeline", "text", "Passes to run, as in slice{ratio=0.5},fold."),
    Key("verify", "check", "no_verify", "switch", "Prove the result before it is written.", inverted=True),
    Key("verify", "inputs", "inputs", "file", "Inputs to verify with (.npz)."),
    Key("", "shapes", "shapes", "shapes", "Shapes of inputs with open sizes.", "--shape"),
)
BUDGETS = tuple(k.option for k in KEYS if k.table == "budget" and k.option not in ("evaluate", "cost_table"))
NOTES = ("versions", "sha256")  # tables that say how a recipe came about; nothing is set by them
TABLES = tuple(dict.fromkeys(k.table for k in KEYS if k.table))
PLAIN = ("synthetic", "weights")  # calibration inputs that are no file
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Recipe:
    """`options`: parameter of `spa prune` -> value, paths made absolute or relative to the working directory; `origins`: where
    each was written; `notes`: versions and sha256 of the run that wrote it."""

    options: Mapping[str, Any]
    origins: Mapping[str, str]
    notes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


# Reading ---------------------------------------------------------------------------------------------------------


def load(path: Path) -> Recipe:
    """Raises `UsageError` for what cannot be read, is unknown, or of the wrong type."""
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"cannot read the recipe: {error}", str(path), "a file such as a bundle's recipe.toml"
        ) from None
    schema = table.pop("schema", None)
    if schema != SCHEMA:
        said = "says no schema" if schema is None else f"has schema {schema!r}"
        raise UsageError(f"the recipe {said}; {SCHEMA} is understood here", str(path), f"schema = {SCHEMA}")
    return read(table, path.parent, path.name)


def read(table: Mapping[str, Any], folder: Path, where: str, section: str = "") -> Recipe:
    """Settings from parsed TOML. `where`: the file's name; `section`: the table of it that holds them ([prune])."""
    options: dict[str, Any] = {}
    origins: dict[str, str] = {}
    notes: dict[str, Mapping[str, str]] = {}
    for name, value, at in flat(table, where, section):
        if at is None:
            notes[name] = value
            continue
        key = next(k for k in KEYS if k.path == name)
        options[key.option] = parsed(key, value, at, folder)
        origins[key.option] = at
    return Recipe(options, origins, notes)


def flat(table: Mapping[str, Any], where: str, section: str) -> Iterator[tuple[str, Any, str | None]]:
    """(path, value, origin) of every setting; origin None for a table of notes."""
    top = {k.name for k in KEYS if not k.table}
    for name, value in table.items():
        if name in NOTES and not section:
            yield name, texts_by_name(value, f"{where} [{name}]"), None
        elif name in top:
            yield name, value, f"{where} [{section}]" if section else where
        elif name in TABLES:
            at = f"{where} [{section}.{name}]" if section else f"{where} [{name}]"
            if not isinstance(value, dict):
                raise UsageError(f"'{name}' is {value!r}, not a table", at)
            known = {k.name for k in KEYS if k.table == name}
            for inner, setting in value.items():
                if inner not in known:
                    raise unknown(inner, known, at)
                yield f"{name}.{inner}", setting, at
        else:
            raise unknown(
                name, {*top, *TABLES, *(() if section else NOTES)}, f"{where} [{section}]" if section else where
            )


def unknown(name: str, known: set[str], where: str) -> UsageError:
    """A setting that nobody has: the nearest, the same name in another table, or all there are."""
    same = [k.path for k in KEYS if name in (k.name, k.option) or k.word == f"--{name.replace('_', '-')}"]
    hint = f"did you mean '{same[0]}'?" if same else suggest(name, known)
    return UsageError(f"there is no setting '{name}'", where, hint or "one of " + ", ".join(sorted(known)))


def texts_by_name(value: Any, where: str) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise UsageError(f"{value!r} is no table of texts", where)
    return value


def parsed(key: Key, value: Any, where: str, folder: Path) -> Any:
    """A value as `spa prune` takes it. Raises `UsageError` where its type is wrong."""
    match key.kind:
        case "text" if isinstance(value, str):
            return value
        case "number" if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        case "integer" if type(value) is int:
            return value
        case "switch" if isinstance(value, bool):
            return value != key.inverted
        case "texts" if isinstance(value, list) and all(isinstance(v, str) for v in value):
            return tuple(value)
        case "size" if isinstance(value, str) or type(value) is int:
            return str(value)
        case "file" if isinstance(value, str):
            return str(folder / value)
        case "inputs" if isinstance(value, str):
            return inputs_from(value, folder)
        case "shapes" if isinstance(value, dict) and all(is_shape(v) for v in value.values()):
            return tuple(f"{name}:{','.join(map(str, dims))}" for name, dims in value.items())
    raise UsageError(f"'{key.path}' is {value!r}, not {ASKED[key.kind]}", where)


ASKED = {
    "text": "a text",
    "number": "a number",
    "integer": "a whole number",
    "switch": "true or false",
    "texts": "a list of texts",
    "size": 'a size such as "2MB"',
    "file": "a path",
    "inputs": "a path, module:function, synthetic or weights",
    "shapes": "a table such as { x = [1, 3, 224, 224] }",
}


def is_shape(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(d) is int and d > 0 for d in value)


def is_file(inputs: str) -> bool:
    """Do calibration inputs name a file or folder, rather than a function or none?"""
    name = inputs.partition("{")[0]
    return name not in PLAIN and not FUNCTION.fullmatch(name)


def inputs_from(text: str, folder: Path) -> str:
    name, brace, rest = text.partition("{")
    return f"{folder / name}{brace}{rest}" if is_file(text) else text
