"""Others that run the same network, to be timed in turn with ours: onnxruntime here, onnxruntime-web in Node.

onnxruntime-web comes from npm into our cache folder the first time it is asked for; nothing is installed elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from spa.errors import MissingTool, SpaError
from spa.runtime.child import Child
from spa.runtime.tensor import Array
from spa.runtime.toolchain import cache_dir, need

WEB_VERSION = "1.30.0"
MODULE = "ort.wasm.bundle.min.mjs"
SCRIPT = Path(__file__).parent / "wasm" / "opponent.mjs"
Step = Callable[[], float]


def onnxruntime_step(model: Path, feeds: Mapping[str, Array], threads: int) -> Step:
    """onnxruntime at its best: all graph optimisations on, the same number of threads."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def step() -> float:
        begin = time.perf_counter()
        session.run(None, dict(feeds))
        return time.perf_counter() - begin

    return step


def web_dist() -> Path:
    """The folder of onnxruntime-web's modules: `SPA_ORT_WEB`, else in our cache, where npm installs it when it is not
    there yet. Raises `MissingTool`."""
    given = os.environ.get("SPA_ORT_WEB")
    if given:
        return Path(given)
    folder = cache_dir() / "onnxruntime-web" / WEB_VERSION
    dist = folder / "node_modules" / "onnxruntime-web" / "dist"
    if dist.is_dir():
        return dist
    npm = need("npm")
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".install-", dir=folder.parent))
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", f"onnxruntime-web@{WEB_VERSION}"]
    try:
        done = subprocess.run(
            [*command, "--prefix", str(stage)], cwd=stage, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise MissingTool(
                "npm could not install onnxruntime-web",
                (done.stderr.strip().splitlines() or [""])[0][:200],
                f"npm install --prefix {folder} onnxruntime-web@{WEB_VERSION}",
            )
        if not folder.exists():  # another process may have been faster
            stage.rename(folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return dist


class Web(Child):
    """onnxruntime-web in a Node process: WebAssembly with SIMD, so many threads."""

    def __init__(self, model: Path, feeds: Mapping[str, Array], threads: int = 1) -> None:
        node, dist = need("node"), web_dist()
        super().__init__()
        rows = [{"name": k, "dtype": str(v.dtype), "shape": list(v.shape), "bytes": v.nbytes} for k, v in feeds.items()]
        (self.folder / "feeds.json").write_text(json.dumps(rows))
        (self.folder / "feeds").write_bytes(b"".join(np.ascontiguousarray(v).tobytes() for v in feeds.values()))
        package = (dist.resolve() / MODULE).as_uri()
        self.start([node, str(SCRIPT), package, str(model), str(self.folder), str(threads)])
        self.ask()  # the session is made: a network it cannot run says so here

    def failed(self, said: str) -> SpaError:
        self.close()
        lines = [line for line in said.splitlines() if "Error" in line or "error" in line]
        return SpaError(f"onnxruntime-web failed: {' '.join(lines)[:300]}", "in Node", "another --against")

    def step(self) -> float:
        return float(self.ask()["ms"]) / 1e3
