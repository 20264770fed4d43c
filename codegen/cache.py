"""Compiled artifacts by content: the same model, options and versions are compiled once.

An entry is a folder named by the key: the files, and `facts.json` with what the manifest says of them and their
digests. It appears by a rename, so it is whole or not there; one that was damaged afterwards is compiled again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import spa.codegen
import spa.runtime
from spa.runtime.toolchain import cache_dir

PACKAGES = ("apache-tvm", "apache-tvm-ffi", "ziglang", "onnx", "onnxruntime", "numpy")


@cache
def _versions() -> str:
    """Versions of everything that shapes an artifact, and a digest of our own sources (which change in between)."""
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package}={metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{package}=")
    digest = hashlib.sha256()
    for module in (spa.codegen, spa.runtime):
        root = Path(module.__path__[0])
        for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".c", ".h", ".mjs", ".ts")):
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return " ".join([*versions, digest.hexdigest()])


def key(model_sha256: str, options: Mapping[str, Any]) -> str:
    """The name of an entry."""
    text = json.dumps([model_sha256, options, _versions()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read(entry: str) -> tuple[dict[str, bytes], dict[str, Any]] | None:
    """Files and facts of an entry, or None."""
    folder = cache_dir() / "artifacts" / entry
    try:
        record = json.loads((folder / "facts.json").read_text())
        files = {name: (folder / name).read_bytes() for name in record["files"]}
    except (OSError, ValueError, KeyError):
        return None
    if any(hashlib.sha256(data).hexdigest() != record["files"][name] for name, data in files.items()):
        return None
    return files, record["facts"]


def write(entry: str, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> None:
    """Store an entry. A cache that cannot be written (read-only, full) is no error: the next time is slow again."""
    root = cache_dir() / "artifacts"
    try:
        root.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".stage-", dir=root))
    except OSError:
        return
    try:
        for name, data in files.items():
            (stage / name).write_bytes(data)
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        (stage / "facts.json").write_text(json.dumps({"facts": facts, "files": digests}))
        if (root / entry).exists():  # damaged, or another process was faster
            shutil.rmtree(root / entry, ignore_errors=True)
        stage.replace(root / entry)
    except OSError:
        pass
    finally:
        shutil.rmtree(stage, ignore_errors=True)
