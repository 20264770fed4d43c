"""Reading a bundle: its manifest and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spa.errors import ModelError, UsageError
from spa.runtime.tensor import Tensor

SCHEMA = 1


@dataclass(frozen=True)
class Target:
    """One target of a bundle. `library`: the file that runs; `prefix`: of its C functions."""

    name: str
    folder: Path
    triple: str
    cpu: str
    library: str
    prefix: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    sha256: Mapping[str, str]
    features: tuple[str, ...] = ()

    def file(self, name: str) -> Path:
        """The path of a file of this target, checked. Raises `ModelError` where it is missing or changed."""
        path = self.folder / name
        if not path.is_file():
            raise ModelError(f"the bundle is incomplete: {path} is missing", hint="compile it again")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self.sha256.get(name):
                raise ModelError(
                    f"the bundle is damaged: {path} is not what the manifest says", hint="compile it again"
                )
        return path


def read_manifest(bundle: Path) -> dict[str, Any]:
    """The manifest of a bundle. Raises `UsageError` where there is none, `ModelError` for an unreadable one."""
    path = bundle / "manifest.json"
    if not path.is_file():
        raise UsageError(
            f"{bundle} is not a bundle: it has no manifest.json", hint="spa compile MODEL --target host -o DIR"
        )
    try:
        manifest = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not readable: {error}", hint="compile it again") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise ModelError(f"{path} has another schema than {SCHEMA}", hint="compile it again with this version of spa")
    return manifest


def target_of(bundle: Path, name: str | None = None) -> Target:
    """A target of a bundle by name; without a name, the only one, or `host` where there are several."""
    manifest = read_manifest(bundle)
    targets = manifest["targets"]
    if name is None:
        name = next(iter(targets)) if len(targets) == 1 else "host"
    if name not in targets:
        raise UsageError(f"{bundle} has no target '{name}'", hint="it has " + ", ".join(targets))
    facts = targets[name]
    return Target(
        name=name,
        folder=bundle / facts["path"],
        triple=facts["triple"],
        cpu=facts["cpu"],
        library=facts["library"],
        prefix=facts["prefix"],
        inputs=tuple(map(Tensor.from_json, manifest["inputs"])),
        outputs=tuple(map(Tensor.from_json, manifest["outputs"])),
        sha256={Path(f).name: digest for f, digest in manifest["files"].items() if f.startswith(facts["path"] + "/")},
        features=tuple(facts.get("features", ())),
    )
