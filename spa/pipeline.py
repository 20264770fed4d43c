"""The pass contract, and pipelines of passes in one text form: `slice{ratio=0.5},fold`.

A pass is a frozen dataclass whose fields are its options, with `name: ClassVar[str]` and `run(model) -> Result`.
It never changes the model it is given. Passes from outside register under the entry point group `spa.passes`.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from spa.errors import UsageError

if TYPE_CHECKING:
    from spa.model import Model
    from spa.planning import Plan

ENTRY_POINTS = "spa.passes"

# name -> where its class is; imported when it is used
PASSES = {
    "fold": "spa.passes.fold:Fold",
    "halve": "spa.passes.halve:Halve",
    "lowrank": "spa.passes.lowrank:LowRank",
    "quantize": "spa.passes.quantize:Quantize",
    "rearrange": "spa.passes.rearrange:Rearrange",
    "slice": "spa.passes.slice:Slice",
    "soup": "spa.passes.soup:Soup",
    "sparsify": "spa.passes.sparsify:Sparsify",
}


@dataclass(frozen=True)
class Result:
    """What a pass gives back: the new model, the plan where channels were removed, and facts worth reporting."""

    model: Model
    plan: Plan | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        from spa.report.notebook import result

        return result(self)


class Pass(Protocol):
    name: ClassVar[str]

    def run(self, model: Model) -> Result: ...


@dataclass(frozen=True)
class Pipeline:
    """Passes that run one after the other. `str()` gives the text it can be parsed from."""

    passes: tuple[Pass, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """`name{option=value,...},name,...`: raises `UsageError` for what it does not know.

        >>> str(Pipeline.parse("fold{ batchnorm = false }, fold"))
        'fold{batchnorm=false},fold'
        """
        return cls(tuple(make_pass(name, options) for name, options in split(text)))

    def run(self, model: Model) -> Result:
        """Each pass on the result of the one before. Facts are merged; the plan is the last one made."""
        plan: Plan | None = None
        facts: dict[str, Any] = {}
        for step in self.passes:
            result = step.run(model)
            model, plan, facts = result.model, result.plan or plan, {**facts, **result.facts}
        return Result(model, plan, facts)

    def __str__(self) -> str:
        return ",".join(map(pass_text, self.passes))


# Text -> names and options ---------------------------------------------------------------------------------------

_QUOTED = r'"(?:[^"\\]|\\.)*"'  # as JSON writes a string
_PASS = re.compile(rf"""\s*([A-Za-z_][\w.-]*)\s*(?:\{{((?:[^{{}}"]|{_QUOTED})*)\}})?\s*(,|$)""")
_OPTION = re.compile(rf"""\s*([A-Za-z_]\w*)\s*=\s*({_QUOTED}|\[(?:[^\[\]"]|{_QUOTED})*\]|[^,"\[\]]*?)\s*(?:,|$)""")
_ITEM = re.compile(rf"""\s*({_QUOTED}|[^,;"]+)""")


def split(text: str) -> list[tuple[str, dict[str, str]]]:
    """
    >>> split("slice{ratio=0.5, keep=[a,b]},fold")
    [('slice', {'ratio': '0.5', 'keep': '[a,b]'}), ('fold', {})]
    """
    found: list[tuple[str, dict[str, str]]] = []
    position, comma = 0, ","
    while position < len(text) or (comma and found):
        match = _PASS.match(text, position)
        if match is None:
            raise UsageError(f"cannot read the pipeline from column {position + 1}: '{text[position:]}'", text, _FORM)
        name, options, comma = match.groups()
        found.append((name, _split_options(options or "", name)))
        position = match.end()
    return found


_FORM = "name{option=value,...},name,... as in fold{batchnorm=false}"


def _split_options(text: str, name: str) -> dict[str, str]:
    found: dict[str, str] = {}
    position = 0
    while text[position:].strip():
        match = _OPTION.match(text, position)
        if match is None:
            raise UsageError(f"cannot read the options of '{name}': '{text[position:].strip()}'", hint=_FORM)
        key, value = match.groups()
        if key in found:
            raise UsageError(f"the option '{key}' of '{name}' is given twice", hint="give it once")
        found[key] = value
        position = match.end()
    return found


# Names -> passes -------------------------------------------------------------------------------------------------


def available() -> dict[str, str]:
    """Name -> import path of every pass, from here and from entry points. A name of ours cannot be taken over."""
    outside = {e.name: e.value for e in entry_points(group=ENTRY_POINTS)}
    return {**outside, **PASSES}


def pass_class(name: str) -> type[Any]:
    """The class behind a name. Raises `UsageError` for a name nobody has, or one whose import fails."""
    where = available()
    if name not in where:
        raise UsageError(f"no pass is called '{name}'", hint=suggest(name, where) or "spa passes lists them")
    module, _, attribute = where[name].partition(":")
    try:
        found: type[Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"the pass '{name}' cannot be imported: {error}", where[name]) from error
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise UsageError(f"the pass '{name}' is not a dataclass", where[name])
    return found


def make_pass(name: str, options: Mapping[str, str]) -> Pass:
    """Build a pass from text options. Raises `UsageError` for an unknown option or a value of the wrong type."""
    cls = pass_class(name)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    hints = typing.get_type_hints(cls)
    for key in options:
        if key not in fields:
            known = f"it has {', '.join(fields)}" if fields else "it has none"
            raise UsageError(f"the pass '{name}' has no option '{key}'", hint=suggest(key, fields) or known)
    values = {key: parse_value(text, hints[key], f"{name}{{{key}=...}}") for key, text in options.items()}
    missing = [
        f.name
        for f in fields.values()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in values
    ]
    if missing:
        raise UsageError(f"the pass '{name}' needs {', '.join(missing)}", hint=f"{name}{{{missing[0]}=...}}")
    try:
        made: Pass = cls(**values)
    except (ValueError, TypeError) as error:
        raise UsageError(f"the pass '{name}' rejects its options: {error}") from error
    return made


def suggest(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'?" if close else ""


# Values <-> text -------------------------------------------------------------------------------------------------

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def parse_value(text: str, kind: Any, where: str) -> Any:
    """Read `text` as the type of a dataclass field: bool, int, float, str, Literal, T | None, tuple[T, ...], list[T].

    >>> parse_value("[a, b]", tuple[str, ...], ""), parse_value("none", int | None, ""), parse_value("1", float, "")
    (('a', 'b'), None, 1.0)
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _parse_union(text, arguments, where)
    if origin in (tuple, list):
        element = arguments[0] if arguments else str
        items = [parse_value(t, element, where) for t in _items(text)]
        return tuple(items) if origin is tuple else items
    if origin is typing.Literal:
        by_text = {str(a): a for a in arguments}
        if _unquote(text) not in by_text:
            hint = suggest(text, by_text) or f"one of {', '.join(by_text)}"
            raise UsageError(f"'{text}' is no choice for {where}", hint=hint)
        return by_text[_unquote(text)]
    if kind is bool:
        if text.lower() not in _WORDS:
            raise UsageError(f"'{text}' is neither true nor false", where)
        return _WORDS[text.lower()]
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            name = "a whole number" if kind is int else "a number"
            raise UsageError(f"'{text}' is not {name}", where) from None
    return _unquote(text)


def _parse_union(text: str, kinds: tuple[Any, ...], where: str) -> Any:
    if types.NoneType in kinds and text.lower() in ("none", "null"):
        return None
    failures = []
    for kind in sorted((k for k in kinds if k is not types.NoneType), key=lambda k: k is str):  # str takes anything
        try:
            return parse_value(text, kind, where)
        except UsageError as error:
            failures.append(error)
    raise failures[0]


def _items(text: str) -> list[str]:
    """`[a, b]` or `a` -> its items; ';' separates too."""
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return [item.strip() for item in _ITEM.findall(inner) if item.strip()]


def _unquote(text: str) -> str:
    return str(json.loads(text)) if len(text) > 1 and text[0] == text[-1] == '"' else text


def pass_text(step: Pass) -> str:
    """A pass with the options that differ from their defaults, as `Pipeline.parse` reads it."""
    assert dataclasses.is_dataclass(step)
    options = [
        f"{f.name}={value_text(getattr(step, f.name))}"
        for f in dataclasses.fields(step)
        if f.init and getattr(step, f.name) != _default(f)
    ]
    return f"{step.name}{{{','.join(options)}}}" if options else step.name


def _default(option: dataclasses.Field[Any]) -> Any:
    return option.default if option.default_factory is dataclasses.MISSING else option.default_factory()


def value_text(value: Any) -> str:
    """
    >>> value_text((0.5, "2:4")), value_text(True), value_text("a,b")
    ('[0.5,2:4]', 'true', '"a,b"')
    """
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{','.join(map(value_text, value))}]"
    text = str(value)
    plain = re.fullmatch(r"[^\s,;{}\[\]\"=]+", text) and text.lower() not in ("none", "null")
    return text if plain or not isinstance(value, str) else json.dumps(text)
