"""Parts of the reference that are read off the code when the pages are built.

A line `<!-- generated: NAME -->` of a page becomes what PARTS[NAME] returns: markdown.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

HERE = Path(__file__).parent


# The command line ------------------------------------------------------------------------------------------------


def cli() -> str:
    """A section per command: usage, what it does, its options with their defaults."""
    from spa.cli import VERBS
    from spa.cli import cli as group

    root = click.Context(group, info_name="spa")
    parts = []
    for verb in VERBS:
        command = group.get_command(root, verb)
        assert command is not None
        context = click.Context(command, info_name=verb, parent=root)
        parts += [f"## spa {verb}", f"```text\n{command.get_usage(context)}\n```", _prose(command.help or "")]
        rows = [row for row in map(_option, command.get_params(context)) if row]
        parts.append("\n".join(["| option | |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def _option(parameter: click.Parameter) -> str:
    if not isinstance(parameter, click.Option) or parameter.hidden or "--help" in parameter.opts:
        return ""
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    value = "" if parameter.is_flag else f" `{parameter.metavar or _choices(parameter.type)}`"
    notes = ["may be repeated"] if parameter.multiple and "repeated" not in (parameter.help or "") else []
    notes += ["required"] if parameter.required else []
    default = parameter.default
    if isinstance(default, str | int | float) and not isinstance(default, bool) and default != "":
        notes.append(f"default {default}")
    text = (parameter.help or "") + (f" ({', '.join(notes)})" if notes else "")
    return f"| {names}{value} | {_cell(text)} |"


def _choices(kind: click.ParamType) -> str:
    return " or ".join(map(str, kind.choices)) if isinstance(kind, click.Choice) else str(kind.name).upper()


# Python ----------------------------------------------------------------------------------------------------------

# heading -> module and what of it is public; an empty list stands for all that the module's __all__ or own file has
PUBLIC: dict[str, tuple[str, list[str]]] = {
    "spa": ("spa", []),
    "Calibration inputs: spa.calibration": ("spa.calibration", ["load"]),
    "Judging: spa.judging": ("spa.judging", ["judge", "judge_plan"]),
    "Budgets over time: spa.schedule": ("spa.schedule", ["cubic", "gradual", "compose"]),
    "PyTorch: spa.interop.torch": ("spa.interop.torch", ["apply", "names", "gradients"]),
    "Where tasks run: spa.execution": ("spa.execution", ["on", "using"]),
    "Progress: spa.progress": ("spa.progress", ["listening"]),
    "Errors: spa.errors": ("spa.errors", ["SpaError", "CheckFailed", "UsageError", "Unsupported", "MissingTool"]),
}


def api() -> str:
    """A section per module, a heading per name: signature, docstring, public methods and fields."""
    parts = []
    for heading, (name, members) in PUBLIC.items():
        if name == "spa.interop.torch" and importlib.util.find_spec("torch") is None:
            parts += [f"## {heading}", *_read(name, members)]
            continue
        module = importlib.import_module(name)
        parts += [f"## {heading}", _prose(inspect.getdoc(module) or "")]
        for member in members or [m for m in module.__all__ if not m.startswith("__")]:
            parts += _described(f"{name}.{member}", getattr(module, member), "###")
    return "\n\n".join(parts)


def _read(name: str, members: list[str]) -> Iterable[str]:
    """Of a module that cannot be imported here: what its source says."""
    tree = ast.parse((HERE.parent / name.replace(".", "/")).with_suffix(".py").read_text("utf-8"))
    yield _prose(ast.get_docstring(tree) or "")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in members:
            yield f"### {name}.{node.name}"
            yield f"```python\n{name}.{node.name}({ast.unparse(node.args)})\n```"
            yield _prose(ast.get_docstring(node) or "")


def _described(name: str, what: Any, level: str) -> Iterable[str]:
    yield f"{level} {name}"
    if not callable(what):
        return
    yield f"```python\n{_signature(name, what)}\n```"
    yield _prose(inspect.getdoc(what) or "")
    if inspect.isclass(what):
        for member, value in vars(what).items():
            own = inspect.isfunction(value) or isinstance(value, classmethod | staticmethod | property)
            if own and not member.startswith("_"):
                inner = value.fget if isinstance(value, property) else getattr(what, member)
                shown = f".{member}" if isinstance(value, property) else _signature(f".{member}", inner)
                first = (inspect.getdoc(inner) or "").split("\n\n")[0]
                yield f"`{shown}`\n: {' '.join(first.split()) or '–'}"


def _signature(name: str, what: Any) -> str:
    try:
        signature = inspect.signature(what)
    except (ValueError, TypeError):
        return name
    own, starred = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            own.append("*")
        starred = starred or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        if parameter.name != "self":
            own.append(_parameter(parameter))
    ends = "" if inspect.isclass(what) else f" -> {_plain(signature.return_annotation)}"
    flat = f"{name}({', '.join(own)}){ends}"
    return flat if name.startswith(".") or len(flat) <= 100 else f"{name}(\n    " + ",\n    ".join(own) + f",\n){ends}"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    default = "" if parameter.default is parameter.empty else f" = {_default(parameter.default)}"
    return f"{stars}{parameter.name}: {_plain(parameter.annotation)}{default}"


def _default(value: Any) -> str:
    return "..." if "object at" in repr(value) or "<factory>" in repr(value) else repr(value)


def _plain(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return "Any"
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _prose(docstring: str) -> str:
    """A docstring as markdown: examples become code, indented lists stay as they stand."""
    parts = []
    for part in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        if part.lstrip().startswith(">>>"):
            parts.append(f"```python\n{textwrap.dedent(part)}\n```")
        elif re.search(r"^ {2,}|\S {3,}\S", part, re.MULTILINE):
            parts.append(f"```text\n{part}\n```")
        else:
            parts.append(_text(part))
    return "\n\n".join(parts)


def _text(text: str) -> str:
    """No line of it is taken for a heading, a list or a tag."""
    return re.sub(r"(?m)^([#>+*-])", r"\\\1", re.sub(r"<(?=[\w/!])", r"\\<", text))


def _cell(text: str) -> str:
    return _text(" ".join(text.split())).replace("|", "\\|").replace("*", "\\*")


# Passes, targets, schemas ----------------------------------------------------------------------------------------


def passes() -> str:
    """Name, what it does, its options."""
    from spa.pipeline import PASSES, pass_class

    rows = ["| pass | | options |", "|---|---|---|"]
    for name in PASSES:
        kind: Any = pass_class(name)
        first = (inspect.getdoc(kind) or "").split("\n\n")[0]
        options = ", ".join(_field(f) for f in dataclasses.fields(kind) if f.init)
        rows.append(f"| `{name}` | {_cell(first)} | {options} |")
    return "\n".join(rows)


def _field(option: dataclasses.Field[Any]) -> str:
    return f"`{option.name}`" if option.default is dataclasses.MISSING else f"`{option.name}={option.default!r}`"


def schemas() -> str:
    """A section per schema: what it describes, and its keys."""
    parts = []
    for file in sorted((HERE / "schemas").glob("*.json")):
        schema = json.loads(file.read_text("utf-8"))
        rows = ["| key | | |", "|---|---|---|"]
        for key, value in schema.get("properties", {}).items():
            needed = "required" if key in schema.get("required", ()) else ""
            rows.append(f"| `{key}` | {needed} | {_cell(value.get('description', ''))} |")
        parts += [f"## {schema['title']}", _text(schema.get("description", "")), f"Schema: `docs/schemas/{file.name}`"]
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


# Pages -----------------------------------------------------------------------------------------------------------


def rest() -> str:
    """A list of contents with the pages of docs/ that no other list names, so that a new page is never lost."""
    listed = set()
    for index in HERE.rglob("index.md"):
        for block in re.findall(r"```\{toctree\}\n(.*?)```", index.read_text("utf-8"), re.DOTALL):
            listed |= {(index.parent / line.strip()).resolve() for line in block.splitlines() if line.strip()}
    new = sorted(page.stem for page in HERE.glob("*.md") if page.with_suffix("") not in listed | {HERE / "index"})
    return "\n".join(["```{toctree}", *(f"../{name}" for name in new), "```"]) if new else ""


PARTS: dict[str, Callable[[], str]] = {"cli": cli, "api": api, "passes": passes, "schemas": schemas, "rest": rest}
