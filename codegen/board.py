"""Running the probes on another machine: a static program, and a command that brings it there.

The command is what one types before something that is to be run: `ssh board`, `adb shell`, `docker exec -i box sh -c`. It is
given one argument more, a line for the shell there, and the program on its standard input; nothing has to be installed on
the other side. With `{}` in it, it is given the program's path on this machine instead: `qemu-aarch64 {}`.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import spa.runtime
from spa.codegen.target import Target
from spa.errors import MissingTool, SpaError, Unsupported, UsageError
from spa.runtime.toolchain import run_zig

SOURCE = Path(spa.runtime.__path__[0]) / "native" / "probes.c"
THERE = 'd=$(mktemp -d) && cat > "$d/probes" && chmod 700 "$d/probes" && "$d/probes"; c=$?; rm -rf "$d"; exit $c'
PATIENCE = 900  # seconds
HINT = "--on 'ssh BOARD': a command that runs a shell line there"


def link(work: Path, target: Target, names: Sequence[str], sizes: Sequence[int], rounds: int) -> Path:
    """A program of the kernels in `work/probes.o`. Raises `Unsupported` for a target without static programs."""
    machine, system, *_ = target.zig.split("-")
    if system != "linux":
        raise Unsupported("no program for it can be sent elsewhere", f"--target {target.name}", "run spa there")
    shutil.copyfile(SOURCE, work / "probes.c")
    (work / "probes.h").write_text("".join(f"PROBE({name})\n" for name in names))
    numbers = [f"-D{name}={value}" for name, value in zip(("X", "W", "Y", "ROUNDS"), (*sizes, rounds), strict=True)]
    flags = ["-target", f"{machine}-linux-musl", "-static", "-O2", "-s", "-fno-sanitize=all", *numbers]
    done = run_zig(["cc", *flags, "probes.c", "probes.o", "-o", "probes", "-lm"], work)
    if done.returncode:
        raise SpaError(
            f"zig cc failed: {done.stderr.strip()[-300:]}", "probes.c", "this is a bug of spa: please report it"
        )
    return work / "probes"


def run(program: Path, command: str, names: Sequence[str]) -> tuple[list[float], str]:
    """Nanoseconds of each probe, and what the machine calls itself. Raises `UsageError` for a command that brings none."""
    said = _said(program, command)
    lines = dict(line.split(" ", 1) for line in said.splitlines() if " " in line)
    try:
        return [float(lines[name]) for name in names], " ".join(lines["machine"].split())
    except (KeyError, ValueError) as error:
        raise UsageError(f"no times came back, but: {said.strip()[-120:]!r}", command, HINT) from error


def _said(program: Path, command: str) -> str:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"not a command: {error}", f"--on {command}", HINT) from error
    if not words:
        raise UsageError("not a command", f"--on {command!r}", HINT)
    local = any("{}" in word for word in words)
    called = [word.replace("{}", str(program)) for word in words] if local else [*words, THERE]
    try:
        done = subprocess.run(
            called,
            input=b"" if local else program.read_bytes(),
            capture_output=True,
            check=False,
            timeout=PATIENCE,
        )
    except FileNotFoundError as error:
        raise MissingTool(f"{words[0]} is not installed", f"--on {command}", HINT) from error
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"no answer within {PATIENCE} s", command, "is the machine there?") from error
    if done.returncode:
        complaint = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise UsageError(f"the probes did not run: {complaint[0][-160:]} (exit {done.returncode})", command, HINT)
    return done.stdout.decode(errors="replace")
