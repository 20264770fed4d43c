"""spa doctor"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import click

# packages that some commands use where they are installed: what for, and how to get them
OPTIONAL = {
    "pillow": ("calibration on folders of images", "pip install pillow"),
    "distributed": ("--cluster", "pip install distributed"),
    "onnx-graphsurgeon": ("passes written against it", "pip install onnx-graphsurgeon"),
    "torch": ("spa.interop.torch", "pip install torch --index-url https://download.pytorch.org/whl/cpu"),
}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor(as_json: bool) -> None:
    """Say which tools and packages are here, which are missing, and how to install those. Exit 0 either way."""
    import platform

    from spa._version import __version__
    from spa.runtime.toolchain import INSTALL, PURPOSE, cache_dir, find, install, machine_level

    rows = [{"tool": tool, "found": find(tool), "for": PURPOSE[tool], "install": install(tool)} for tool in INSTALL]
    found = packages()
    checks = surroundings(cache_dir())
    machine = {
        "spa": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "level": machine_level(),
    }
    if as_json:
        needed = [p["ok"] for p in found if p["required"]] + [c["ok"] for c in checks]
        ok = all(row["found"] for row in rows) and all(needed)
        document = {"schema": 1, "ok": ok, **machine, "cache": str(cache_dir()), "tools": rows}
        click.echo(json.dumps({**document, "packages": found, "checks": checks}))
        return
    from rich.markup import escape
    from rich.table import Table

    from spa.cli.terminal import console, say, show

    out = console()
    table = Table("tool", "what for", "state")
    for row in rows:
        table.add_row(row["tool"], row["for"], "found" if row["found"] else escape(f"missing: {row['install']}"))
    show(out, table)
    table = Table("package", "version", "what for", "state")
    for p in found:
        table.add_row(
            p["package"], p["version"] or "", p["for"], "fine" if p["ok"] else escape(f"missing: {p['install']}")
        )
    show(out, table)
    for check in checks:
        say(
            out,
            f"{'fine' if check['ok'] else 'WRONG'}: {check['what']}" + (f"; {check['try']}" if check["try"] else ""),
        )
    click.echo(
        f"spa {__version__}, Python {machine['python']}, {platform.machine()} ({machine_level()}), cache {cache_dir()}",
        err=True,
    )


def packages() -> list[dict[str, Any]]:
    """What spa requires, by its own metadata, and what it uses where it is."""
    from importlib.metadata import PackageNotFoundError, requires, version

    def row(name: str, least: str, purpose: str, install: str, required: bool) -> dict[str, Any]:
        try:
            have = version(name)
        except PackageNotFoundError:
            have = None
        ok = have is not None and numbers(have) >= numbers(least)
        return {"package": name, "version": have, "for": purpose, "install": install, "required": required, "ok": ok}

    try:
        listed = requires("spa-onnx") or []
    except PackageNotFoundError:  # from a folder on the path
        listed = []
    needed = [m.groups() for r in listed if "extra ==" not in r and (m := re.match(r"([\w.-]+)\s*(?:>=([\d.]+))?", r))]
    required = [
        row(
            name, least or "0", "spa itself", f"pip install '{name}>={least}'" if least else f"pip install {name}", True
        )
        for name, least in needed
    ]
    return required + [row(name, "0", *told, False) for name, told in OPTIONAL.items()]


def numbers(version: str) -> tuple[int, ...]:
    """
    >>> numbers("1.23.2.post1") >= numbers("1.19")
    True
    """
    return tuple(int(n) for n in re.findall(r"\d+", version.split("+")[0])[:3])


def surroundings(cache: Path) -> list[dict[str, Any]]:
    """The cache folder, the configuration and the environment, as they would take effect here."""
    from spa.errors import SpaError

    place = next((p for p in (cache, *cache.parents) if p.exists()), cache)
    writable = os.access(place, os.W_OK)
    hint = "" if writable else "SPA_CACHE_DIR names another folder"
    found = [{"what": f"the cache folder {cache} can be written", "ok": writable, "try": hint}]
    try:
        from spa.checking.config import find, load
        from spa.cli.recipe import project_settings

        file = find(Path.cwd())
        load()
        project_settings()
        found.append({"what": f"configuration: {file or 'none, defaults hold'}", "ok": True, "try": ""})
    except SpaError as error:
        found.append({"what": f"configuration: {error.what} ({error.where})", "ok": False, "try": error.hint})
    ours = sorted(n for n in os.environ if n.startswith("SPA_"))
    if ours:
        found.append({"what": f"set in the environment: {', '.join(ours)}", "ok": True, "try": ""})
    return found
