"""Writing recipes: the file, the command line that means the same, and the JSON Schema."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spa.recipe import KEYS, NOTES, SCHEMA, TABLES, Key, Kind, is_file


def written(options: Mapping[str, Any], folder: Path, notes: Mapping[str, Mapping[str, str]]) -> str:
    """A recipe of everything in `options` that has a value, for a file in `folder`; the same options give the same text."""
    lines = ["# spa prune --recipe recipe.toml runs this again; paths are relative to this file", f"schema = {SCHEMA}"]
    for table in ("", *TABLES):
        own = [k for k in KEYS if k.table == table and k.kind != "shapes"]
        rows = [f"{k.name} = {toml(v)}" for k in own if (v := value_of(k, options, folder)) not in (None, [])]
        lines += ["", f"[{table}]", *rows] if table and rows else rows
    if shapes := options.get("shapes"):
        lines += ["", "[shapes]"]
        lines += [f"{toml_key(n)} = [{d.replace(',', ', ')}]" for n, _, d in (s.rpartition(":") for s in shapes)]
    for name in NOTES:
        if name in notes:
            lines += ["", f"[{name}]", *(f"{toml_key(k)} = {toml(v)}" for k, v in notes[name].items())]
    return "\n".join(lines) + "\n"


def value_of(key: Key, options: Mapping[str, Any], folder: Path) -> Any:
    """What a recipe in `folder` says of a setting; None for nothing."""
    value = options.get(key.option)
    if value is None:
        return None
    if key.kind == "switch":
        return bool(value) != key.inverted
    if key.kind == "file":
        return relative(str(value), folder)
    if key.kind == "inputs":
        name, brace, rest = str(value).partition("{")
        return f"{relative(name, folder)}{brace}{rest}" if is_file(value) else value
    return list(value) if key.kind == "texts" else value


def relative(path: str, folder: Path) -> str:
    """From the folder, with slashes; as it is where there is no way (another drive)."""
    try:
        return Path(os.path.relpath(Path(path).absolute(), folder.absolute())).as_posix()
    except ValueError:
        return Path(path).absolute().as_posix()


def toml(value: Any) -> str:
    """
    >>> toml([0.5, True, 'a "b"'])
    '[0.5, true, "a \\\\"b\\\\""]'
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, str):  # JSON's escapes are TOML's, but for one sign
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return repr(value)


def toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml(name)


QUIET = {"scope": "auto", "seed": 0, "refine": 0}  # what the command line need not say


def command(options: Mapping[str, Any], folder: Path) -> str:
    """The command line of these options, to be run from `folder`, in the table's order."""
    words: list[str] = []
    for key in KEYS:
        value = value_of(key, options, folder) if key.kind != "shapes" else list(options.get(key.option) or ())
        if key.option == "model":
            words.insert(0, str(value))
        elif key.kind == "switch":
            words += [key.word] if value is not None and options[key.option] else []
        elif isinstance(value, list):
            words += [w for v in value for w in (key.word, str(v))]
        elif value is not None and QUIET.get(key.option) != value:
            words += [key.word, str(value)]
    return shlex.join(["spa", "prune", *words])


FORMS: Mapping[Kind, Mapping[str, Any]] = {
    "text": {"type": "string"},
    "number": {"type": "number"},
    "integer": {"type": "integer"},
    "switch": {"type": "boolean"},
    "texts": {"type": "array", "items": {"type": "string"}},
    "size": {"type": ["string", "integer"]},
    "file": {"type": "string"},
    "inputs": {"type": "string"},
    "shapes": {
        "type": "object",
        "additionalProperties": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 1}},
    },
}


def schema() -> dict[str, Any]:
    """The JSON Schema of a recipe (docs/schemas/recipe.json)."""

    def properties(keys: Sequence[Key]) -> dict[str, Any]:
        return {k.name: {"description": k.what, **FORMS[k.kind]} for k in keys}

    tables = {
        t: {
            "type": "object",
            "additionalProperties": False,
            "properties": properties([k for k in KEYS if k.table == t]),
        }
        for t in TABLES
    }
    notes = {n: {"type": "object", "additionalProperties": {"type": "string"}} for n in NOTES}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Recipe of spa prune",
        "description": "A whole run of spa prune; paths are relative to the recipe's folder.",
        "type": "object",
        "required": ["schema"],
        "additionalProperties": False,
        "properties": {"schema": {"const": SCHEMA}, **properties([k for k in KEYS if not k.table]), **tables, **notes},
    }
