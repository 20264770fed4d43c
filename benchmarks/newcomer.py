"""How long the tutorial takes somebody who starts from nothing: python benchmarks/newcomer.py

Clones this repository (what is committed), installs it into a fresh environment as the tutorial says, then runs every
command of docs/tutorial.md in the clone, with an empty cache, each as a process of its own. Prints the machine and seconds.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from docs_blocks import blocks  # noqa: E402  (tests is no package)


def steps(page: str) -> list[tuple[str, str]]:
    """(section, command) of what the page has readers run; files to write and preparations are commands too."""
    found, section, at = [], "", 0
    lines = page.splitlines()
    for block in blocks(page):
        for line in lines[at : block.first]:
            section = line[3:] if line.startswith("## ") else section
        at = block.first
        if "illustration" in block.marks or block.language in ("needs", "text"):
            continue
        if "file" in block.marks:
            found.append((section, f"cat > {block.marks['file']} <<'END'\n{block.text}\nEND"))
        elif block.language == "console":
            joined = block.text.replace("\\\n", "").splitlines()
            found += [(section, " ".join(line[2:].split())) for line in joined if line.startswith("$ ")]
        else:
            found += [(section, line) for line in block.lines if line.strip()]
    return found


def main() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"machine: {platform.system()} {platform.machine()}, {cores} cores usable")
    with tempfile.TemporaryDirectory(prefix="spa-newcomer-") as name:
        clone = Path(name) / "spa"
        path = f"{clone / '.venv' / 'bin'}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "SPA_CACHE_DIR": f"{name}/cache"}
        environment.pop("PYTHONPATH", None)
        total: dict[str, float] = {}

        def run(section: str, command: str, folder: Path) -> None:
            begin = time.perf_counter()
            done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
            seconds = time.perf_counter() - begin
            total[section] = total.get(section, 0) + seconds
            print(f"{seconds:7.1f} s  {command.splitlines()[0][:100]}", flush=True)
            if done.returncode:
                raise SystemExit(done.stdout + done.stderr)

        run("clone", f"git clone --quiet {ROOT} spa", Path(name))
        run("install", "make install", clone)
        for section, command in steps((clone / "docs" / "tutorial.md").read_text("utf-8")):
            run(section, command, clone)
        print("\n".join(f"{seconds:7.1f} s  {section}" for section, seconds in total.items()))
        print(f"{sum(total.values()):7.1f} s  in all")


if __name__ == "__main__":
    main()
