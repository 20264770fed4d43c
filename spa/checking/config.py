"""What is asked: `spa.toml`, or `[tool.spa]` of a pyproject.toml, read once; every value with where it comes from.

[check]                              # of all models
models = ["models/*.onnx"]           # globs from this file's folder
baseline = "spa-baseline.json"
budgets = { file_bytes = "+2%", macs = 1e9 }

[check.model."models/digits.onnx"]   # of those that match this glob; later tables win
budgets = { drift = 0.05 }
reference = "models/dense.onnx"
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spa.checking.limits import DEFAULT_BUDGETS, Limit, kind_of, parse_limit
from spa.errors import UsageError
from spa.pipeline import suggest
from spa.quantities import quantity

BASELINE = "spa-baseline.json"
SECTIONS = ("check", "prune")  # of spa.toml
TOML = {"dict": "table", "list": "list", "str": "text"}
TABLES = {"budgets": dict, "floors": dict, "shapes": dict}
TEXTS = {"reference": str, "inputs": str, "metric": str, "bundle": str}
PER_MODEL = {**TABLES, **TEXTS, "record": list}
TOP = {"models": list, "baseline": str, "model": dict}


@dataclass(frozen=True)
class Setting:
    """A value as it was written, and where."""

    value: Any
    origin: str


@dataclass(frozen=True)
class Config:
    """`root`: what paths are relative to. `layers`: (glob, settings by name such as `budgets.macs`), later ones win."""

    root: Path
    file: Path | None
    models: Setting
    baseline: Setting
    layers: tuple[tuple[str, Mapping[str, Setting]], ...] = ()
    _matched: dict[str, frozenset[Path]] = field(
        default_factory=dict, repr=False, compare=False
    )  # folders can be large

    @property
    def baseline_file(self) -> Path:
        return self.root / str(self.baseline.value)

    def key(self, path: Path) -> str:
        """The name of a model in the baseline and in reports: its path from the root, with slashes."""
        return Path(os.path.relpath(placed(path), self.root.resolve())).as_posix()

    def found(self) -> list[Path]:
        """The models that the globs name, each once, in order. Raises `UsageError` for a glob that matches nothing."""
        found: dict[Path, None] = {}
        for pattern in self.models.value:
            matched = matching(self.root, pattern)
            if not matched:
                raise UsageError(
                    f"no file matches the model '{pattern}'", self.models.origin, f"a glob from {self.root}"
                )
            found.update(dict.fromkeys(matched))
        return list(found)

    def settings(self, path: Path) -> dict[str, Setting]:
        """Everything set for one model, by name."""
        found: dict[str, Setting] = {}
        for pattern, layer in self.layers:
            if pattern != "*" and pattern not in self._matched:
                self._matched[pattern] = frozenset(map(placed, matching(self.root, pattern)))
            if pattern == "*" or placed(path) in self._matched[pattern]:
                found.update(layer)
        if not any(name.startswith("budgets.") for name in found):
            defaults = {f"budgets.{m}": Setting(t, "default") for m, t in DEFAULT_BUDGETS.items()}
            found = defaults | found
        return found

    def wanted(self, path: Path) -> Wanted:
        return Wanted.of(self.settings(path), self.root)


@dataclass(frozen=True)
class Wanted:
    """What is asked of one model, parsed. Paths are absolute."""

    budgets: Mapping[str, tuple[Limit, ...]] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    record: frozenset[str] = frozenset()
    reference: Path | None = None
    inputs: str | None = None
    metric: str | None = None
    bundle: Path | None = None

    @property
    def asked(self) -> frozenset[str]:
        """The metrics that a budget or `record` names."""
        return frozenset(self.budgets) | self.record

    @classmethod
    def of(cls, settings: Mapping[str, Setting], root: Path) -> Wanted:
        budgets, floors, shapes, record = {}, {}, {}, set[str]()
        texts: dict[str, Setting] = {}
        for name, setting in settings.items():
            head, _, rest = name.partition(".")
            value, where = setting.value, setting.origin
            if head == "budgets":
                kind_of(rest, where)
                if rest == "latency_ms":
                    hint = 'speedup with a reference; record = ["latency_ms"] keeps the number'
                    raise UsageError("milliseconds differ from machine to machine and cannot be a limit", where, hint)
                listed = value if isinstance(value, list) else [value]
                budgets[rest] = tuple(parse_limit(rest, v, where) for v in listed)
            elif head == "floors":
                kind_of(rest, where)
                floors[rest] = _floor(rest, value, where)
            elif head == "shapes":
                shapes[rest] = _shape(rest, value, where)
            elif head == "record":
                for metric in value:
                    kind_of(str(metric), where)
                record = {str(m) for m in value}
            else:
                texts[head] = setting
        reference, bundle = (root / s.value if (s := texts.get(k)) else None for k in ("reference", "bundle"))
        inputs, metric = (texts[k].value if k in texts else None for k in ("inputs", "metric"))
        if inputs is not None:
            file, brace, options = inputs.partition("{")
            inputs = f"{root / file}{brace}{options}" if (root / file).exists() else inputs
        wanted = cls(budgets, floors, shapes, frozenset(record), reference, inputs, metric, bundle)
        for metric_name in {*budgets, *record}:
            for needed, key in (("drift", "reference"), ("speedup", "reference"), ("accuracy", "metric")):
                if metric_name == needed and key not in texts:
                    example = '"models/dense.onnx"' if key == "reference" else '"module:function"'
                    origin = settings.get(f"budgets.{needed}", settings.get("record"))
                    raise UsageError(f"'{needed}' needs a {key}", origin.origin if origin else "", f"{key} = {example}")
        return wanted


def _floor(metric: str, value: Any, where: str) -> float:
    try:
        number = quantity(str(value))
    except ValueError:
        number = -1
    if number < 0 or isinstance(value, bool):
        raise UsageError(f"the floor of '{metric}' is {value!r}", where, '1000 or "1KB"')
    return number


def _shape(name: str, value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(d) is int and d > 0 for d in value):
        raise UsageError(f"the shape of '{name}' is {value!r}", where, f"shapes = {{ {name} = [1, 3, 224, 224] }}")
    return tuple(value)


def placed(path: Path) -> Path:
    """Where a file lies, whatever the file itself is a link to: stores of large files link to their contents."""
    return path.parent.resolve() / path.name


def matching(root: Path, pattern: str) -> list[Path]:
    """The files that a glob names, sorted; a path that exists is itself, whatever signs it holds."""
    plain = root / pattern
    if plain.is_file() or Path(pattern).is_absolute():
        return [plain] if plain.is_file() else []
    return sorted(p for p in root.glob(pattern) if p.is_file())


def find(start: Path) -> Path | None:
    """The nearest spa.toml, or pyproject.toml with [tool.spa], in a folder or above it."""
    for folder in [start, *start.parents]:
        if (folder / "spa.toml").is_file():
            return folder / "spa.toml"
        project = folder / "pyproject.toml"
        if project.is_file() and "spa" in _toml(project).get("tool", {}):
            return project
    return None


def load(
    file: Path | None = None,
    *,
    baseline: Path | None = None,
    budgets: Mapping[str, Any] | None = None,
    start: Path | None = None,
) -> Config:
    """The configuration in `file`, or in the nearest one from `start` (the working directory) upwards, or none.

    `baseline` and `budgets` come from the call and win over the file. Raises `UsageError` for what is unknown or wrong."""
    here = start or Path.cwd()
    file = file or find(here)
    if file is not None and not file.is_file():
        raise UsageError(f"no such configuration: {file}", hint="--config spa.toml")
    root = file.parent.resolve() if file else baseline.parent.resolve() if baseline else here.resolve()
    table = _table(file) if file else {}
    name = file.name if file else ""
    section = "tool.spa.check" if name == "pyproject.toml" else "check"
    at = f"{name} [{section}]"
    _known(table, {**TOP, **PER_MODEL}, at)
    layers = [("*", dict(flat({k: v for k, v in table.items() if k in PER_MODEL}, at)))]
    for pattern, own in table.get("model", {}).items():
        inside = f'{name} [{section}.model."{pattern}"]'
        if not isinstance(own, dict):
            raise UsageError(f"the settings of a model are a table, not {own!r}", inside)
        _known(own, PER_MODEL, inside)
        layers.append((pattern, dict(flat(own, inside))))
    if budgets:
        layers.append(("*", dict(flat({"budgets": dict(budgets)}, "command line"))))
    place = Setting(table.get("baseline", BASELINE), at if "baseline" in table else "default")
    if baseline is not None:
        place = Setting(str(baseline.resolve()), "command line")
    models = Setting(table.get("models", []), at if "models" in table else "default")
    if not all(isinstance(m, str) for m in models.value):
        raise UsageError(f"models are {models.value!r}", at, 'models = ["models/*.onnx"]')
    return Config(root, file, models, place, tuple(layers))


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not readable: {error}", hint="mend the line it names") from None


def tables(file: Path) -> dict[str, Any]:
    """The tables of a configuration file, those of us; raises `UsageError` for one that nobody reads."""
    whole = _toml(file)
    inside = ""
    if file.name == "pyproject.toml":
        whole, inside = whole.get("tool", {}).get("spa", {}), " [tool.spa]"
    for name in whole:
        if name not in SECTIONS:
            hint = suggest(name, SECTIONS) or "one of " + ", ".join(SECTIONS)
            raise UsageError(f"there is no table '{name}'", f"{file.name}{inside}", hint)
    return whole


def _table(file: Path) -> dict[str, Any]:
    table = tables(file).get("check", {})
    if not isinstance(table, dict):
        raise UsageError(f"'check' is {table!r}", file.name, "a table [check]")
    return table


def _known(table: Mapping[str, Any], names: Mapping[str, type], where: str) -> None:
    for name, value in table.items():
        if name not in names:
            raise UsageError(
                f"there is no setting '{name}'", where, suggest(name, names) or "one of " + ", ".join(names)
            )
        if not isinstance(value, names[name]):
            raise UsageError(f"'{name}' is {value!r}, not a {TOML[names[name].__name__]}", where)


def flat(table: Mapping[str, Any], where: str) -> Iterator[tuple[str, Setting]]:
    """`budgets.macs`, `budgets.artifact_bytes.host`, `reference`, ...: one row per value."""
    for name, value in table.items():
        if isinstance(value, dict):
            for inner, setting in flat(value, where):
                yield f"{name}.{inner}", setting
        else:
            yield name, Setting(value, where)
