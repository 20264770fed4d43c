"""Compiled artifacts by content (`spa.cache`): the same model, options and versions are compiled once.

The facts of an entry are what the manifest says of its files.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import spa.cache
import spa.codegen
import spa.runtime

KIND = "artifacts"
PACKAGES = ("apache-tvm", "apache-tvm-ffi", "ziglang", "onnx", "onnxruntime", "numpy")


@cache
def _versions() -> str:
    return spa.cache.versions(PACKAGES, [Path(module.__path__[0]) for module in (spa.codegen, spa.runtime)])


def key(model_sha256: str, options: Mapping[str, Any]) -> str:
    """The name of an entry."""
    return spa.cache.key(model_sha256, dict(options), _versions())


def read(entry: str) -> tuple[dict[str, bytes], dict[str, Any]] | None:
    """Files and facts of an entry, or None."""
    return spa.cache.read(KIND, entry)


def write(entry: str, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> None:
    """Store an entry."""
    spa.cache.write(KIND, entry, files, facts)
