"""A static program around an arm library, so that qemu can run it without an arm system around it."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from spa.errors import SpaError
from spa.runtime.load import Target
from spa.runtime.toolchain import cache_dir, run_zig

SOURCE = Path(__file__).parent / "native" / "runner.c"


def build_runner(target: Target) -> Path:
    """The runner of this library, from the cache where it was built before. The first build of all takes longer (zig
    builds its libc for the target then)."""
    archive, header = target.file(f"lib{target.prefix}.a"), target.file(f"{target.prefix}.h")
    digest = hashlib.sha256()
    for path in (archive, header, SOURCE):
        digest.update(path.read_bytes())
    built = cache_dir() / "runners" / digest.hexdigest() / "runner"
    if built.exists():
        return built
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=built.parent) as folder:
        work = Path(folder)
        for path, name in ((archive, "model.a"), (header, "model.h"), (SOURCE, "runner.c")):
            shutil.copyfile(path, work / name)
        names = [f"-DMODEL(name)={target.prefix}_##name"]
        names += [f"-DINPUTS={len(target.inputs)}", f"-DOUTPUTS={len(target.outputs)}"]
        command = [
            "cc",
            "-target",
            "aarch64-linux-musl",
            "-static",
            "-O2",
            "-s",
            *names,
            "runner.c",
            "model.a",
            "-o",
            "runner",
            "-lm",
        ]
        done = run_zig(command, work)
        if done.returncode:
            raise SpaError(
                f"the runner does not link: {done.stderr.strip()[-400:]}", str(archive), "compile the bundle again"
            )
        (work / "runner").replace(built)
    return built
