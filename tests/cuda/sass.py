"""The machine code in cubins, by nvdisasm: how often each kernel has each instruction."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from functools import cache
from pathlib import Path


@cache
def find_nvdisasm() -> str | None:
    """On the PATH, in a toolkit, or NVIDIA's package from PyPI."""
    packages = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    folders = [*packages.glob("cu*/bin"), Path("/usr/local/cuda/bin")]
    candidates = [shutil.which("nvdisasm"), *(str(f / "nvdisasm") for f in folders)]
    return next((c for c in candidates if c and os.access(c, os.X_OK)), None)


def disassembled(cubin: bytes, folder: Path) -> dict[str, Counter[str]]:
    """By kernel: instruction with its suffixes -> how often."""
    (folder / "k.cubin").write_bytes(cubin)
    command = [str(find_nvdisasm()), "-c", "k.cubin"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    sections = re.split(r"^\s*\.section\s+\.text\.(\w+),.*$", done.stdout, flags=re.M)[1:]
    instruction = re.compile(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
    return {name: Counter(instruction.findall(body)) for name, body in zip(sections[::2], sections[1::2], strict=True)}
