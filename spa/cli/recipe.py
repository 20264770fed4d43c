"""Where the settings of `spa prune` come from: defaults, [prune] of spa.toml, a recipe, the environment, the command line."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from spa.recipe import Recipe

ENVIRONMENT = "SPA_PRUNE"  # and the name of the parameter: SPA_PRUNE_MACS=0.5
ORIGINS = "spa.origins"  # in the context: parameter -> file and table
RECIPE = "spa.recipe"
PACKAGES = ("numpy", "scipy", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


def read_settings(context: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    """Callback of --recipe, before all other parameters: what the files say becomes their default."""
    if context.resilient_parsing:
        return path
    from spa import recipe

    layers = [project_settings()]
    if path is not None:
        layers.append(recipe.load(path))
        context.meta[RECIPE] = layers[-1]
    options: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        if layer.options.keys() & recipe.BUDGETS:  # one budget takes the other's place
            options = {k: v for k, v in options.items() if k not in recipe.BUDGETS}
        options |= layer.options
        origins |= layer.origins
    context.default_map = {**(context.default_map or {}), **options}
    context.meta[ORIGINS] = origins
    return path


def project_settings() -> Recipe:
    """[prune] of the nearest spa.toml (or [tool.spa.prune] of pyproject.toml)."""
    from spa.checking.config import find, tables
    from spa.errors import UsageError
    from spa.recipe import Recipe, read

    file = find(Path.cwd())
    found = tables(file).get("prune", {}) if file is not None else {}
    if file is None or not found:
        return Recipe({}, {})
    section = "tool.spa.prune" if file.name == "pyproject.toml" else "prune"
    if not isinstance(found, dict):
        raise UsageError(f"'prune' is {found!r}", file.name, f"a table [{section}]")
    return read(found, file.parent, file.name, section)


def settled(context: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """Options without the budgets that a stronger place overrides: --ratio on the command line ends a recipe's macs."""
    from spa.recipe import BUDGETS

    given = {k: source for k in BUDGETS if options.get(k) is not None and (source := context.get_parameter_source(k))}
    if not given:
        return options
    strongest = min(given.values())
    return {k: None if k in given and given[k] > strongest else v for k, v in options.items()}


def origin(context: click.Context, option: str) -> str:
    """Where a parameter's value comes from, in words."""
    from click.core import ParameterSource

    match context.get_parameter_source(option):
        case ParameterSource.COMMANDLINE:
            return "command line"
        case ParameterSource.ENVIRONMENT:
            return f"environment {ENVIRONMENT}_{option.upper()}"
        case ParameterSource.DEFAULT_MAP:
            origins: dict[str, str] = context.meta[ORIGINS]
            return origins[option]
    return "default"


# What a run notes of itself --------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """What has a say in the bytes: ours, the packages that compute, and the machine's instructions."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from spa._version import __version__
    from spa.runtime.toolchain import machine_level

    found = {"spa": __version__, "python": platform.python_version()}
    for package in (*PACKAGES, "apache-tvm", "ziglang"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    level = machine_level() if platform.machine() in ("x86_64", "AMD64") else platform.machine()
    return {**found, "machine": f"{platform.system()} {level}"}


def digests(options: Mapping[str, Any]) -> dict[str, str]:
    """sha256 of the files that settings name, by the path of the setting."""
    from spa.recipe import KEYS, is_file

    found = {}
    for key in KEYS:
        value = options.get(key.option)
        if value is None or key.kind not in ("file", "inputs") or (key.kind == "inputs" and not is_file(value)):
            continue
        path = Path(str(value).partition("{")[0] if key.kind == "inputs" else value)
        if path.is_file():
            with path.open("rb") as file:
                found[key.path] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def differences(recipe: Recipe, options: Mapping[str, Any]) -> list[str]:
    """What is not as it was when the recipe was written, so that its bytes may not come again."""
    now = {"versions": versions(), "sha256": digests(options)}
    found = []
    for name, was in recipe.notes.items():
        for key, value in was.items():
            have = now[name].get(key)
            if have is None or have == value:
                continue
            found.append(f"another {key} file" if name == "sha256" else f"{key} {have} instead of {value}")
    return found


def tell_differences(context: click.Context, options: Mapping[str, Any]) -> None:
    recipe = context.meta.get(RECIPE)
    if recipe is not None and (found := differences(recipe, options)):
        shown = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
        click.echo(f"note: not as the recipe was written with: {shown}", err=True)


def records(options: Mapping[str, Any], folder: Path) -> tuple[str, dict[str, Any]]:
    """For a bundle in `folder`: the recipe, and of its report the command that means the same from there and the environment."""
    from spa.drift import MAX_DRIFT
    from spa.recipe import BUDGETS
    from spa.recipe_text import command, written

    whole = dict(options)
    if all(options[k] is None for k in (*BUDGETS, "sparsity", "pipeline")):
        whole["max_drift"] = MAX_DRIFT
    notes = {"versions": versions(), "sha256": digests(whole)}
    return written(whole, folder, notes), {"command": command(whole, folder), "environment": notes["versions"]}
