"""Results by content: the same model, inputs, options and versions are computed once.

An entry is a folder named by its key: the files, and `facts.json` with what is to be known of them and their digests.
It appears by a rename, so it is whole or not there, also when two runs write it or one is killed; an entry that was
damaged afterwards is not an entry. A cache that cannot be written (read-only, full) is no error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from spa.runtime.toolchain import cache_dir


def versions(packages: Iterable[str], sources: Iterable[Path]) -> str:
    """Versions of what shapes a result, and a digest of our own sources (which change in between)."""
    found = []
    for package in packages:
        try:
            found.append(f"{package}={metadata.version(package)}")
        except metadata.PackageNotFoundError:
            found.append(f"{package}=")
    digest = hashlib.sha256()
    for root in sources:
        for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".c", ".h", ".mjs", ".ts")):
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return " ".join([*found, digest.hexdigest()])


def key(*parts: Any) -> str:
    """The name of an entry, from what JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read(kind: str, entry: str) -> tuple[dict[str, bytes], dict[str, Any]] | None:
    """Files and facts of an entry, or None."""
    folder = cache_dir() / kind / entry
    try:
        record = json.loads((folder / "facts.json").read_text())
        files = {name: (folder / name).read_bytes() for name in record["files"]}
        facts = record["facts"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if any(hashlib.sha256(data).hexdigest() != record["files"][name] for name, data in files.items()):
        return None
    with contextlib.suppress(OSError):
        os.utime(folder)  # what was read last is thrown out last
    return files, facts


def write(
    kind: str, entry: str, files: Mapping[str, bytes], facts: Mapping[str, Any], limit: int | None = None
) -> None:
    """Store an entry, and throw out the oldest ones of its kind where they exceed `limit` bytes in all."""
    root = cache_dir() / kind
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
    if limit is not None:
        trim(root, limit)


def trim(root: Path, limit: int) -> None:
    """Throw out the entries used longest ago, remains of killed runs among them, until at most `limit` bytes are left."""
    entries = []
    for folder in root.iterdir():
        try:
            size = sum(p.stat().st_size for p in folder.iterdir())
            entries.append((folder.stat().st_mtime, size, folder))
        except OSError:  # another process was faster
            continue
    total = sum(size for _, size, _ in entries)
    for _, size, folder in sorted(entries):
        if total <= limit:
            break
        shutil.rmtree(folder, ignore_errors=True)
        total -= size
