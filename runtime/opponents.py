"""Others that run the same network, to be timed in turn with ours: onnxruntime here, onnxruntime-web in Node or in a page.

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
from typing import TYPE_CHECKING

import numpy as np

from spa.errors import MissingTool, SpaError
from spa.runtime.child import Child
from spa.runtime.engine import Engine
from spa.runtime.tensor import Array
from spa.runtime.toolchain import cache_dir, need

if TYPE_CHECKING:
    from spa.runtime.browser import Tab

WEB_VERSION = "1.30.0"
IN_NODE, IN_PAGE = "ort.node.min.mjs", "ort.wasm.bundle.min.mjs"  # the latter fetches the script of its threads
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


def web(model: Path, feeds: Mapping[str, Array], threads: int, beside: Engine) -> tuple[Step, Callable[[], None]]:
    """onnxruntime-web where `beside` runs: in its page, or in a Node process. How to run it, and how to end it."""
    from spa.runtime.browser import Chromium

    if isinstance(beside, Chromium):
        return WebInPage(beside.tab, model, feeds, threads).step, lambda: None
    child = Web(model, feeds, threads)
    return child.step, child.close


def _described(feeds: Mapping[str, Array]) -> dict[str, bytes]:
    """What `wasm/ort.mjs` is told of inputs."""
    rows = [{"name": k, "dtype": str(v.dtype), "shape": list(v.shape), "bytes": v.nbytes} for k, v in feeds.items()]
    data = b"".join(np.ascontiguousarray(v).tobytes() for v in feeds.values())
    return {"feeds.json": json.dumps(rows).encode(), "feeds": data}


class WebInPage:
    """onnxruntime-web in a page: WebAssembly with SIMD, so many threads. It ends with its tab."""

    def __init__(self, tab: Tab, model: Path, feeds: Mapping[str, Array], threads: int = 1) -> None:
        files: dict[str, bytes | Path] = {f.name: f for f in web_dist().iterdir() if f.suffix in (".mjs", ".wasm")}
        self._tab = tab
        try:
            self._number = tab.open("theirs", {**files, **_described(feeds), "model": model}, IN_PAGE, threads)
            self.step()  # a network it cannot run says so here
        except RuntimeError as error:
            where = "another --against"
            raise SpaError(f"onnxruntime-web failed: {str(error)[:300]}", "in Chromium", where) from None

    def step(self) -> float:
        return float(self._tab.ask(self._number, "step")["ms"]) / 1e3


class Web(Child):
    """onnxruntime-web in a Node process: WebAssembly with SIMD, so many threads."""

    def __init__(self, model: Path, feeds: Mapping[str, Array], threads: int = 1) -> None:
        node, dist = need("node"), web_dist()
        super().__init__()
        for name, data in _described(feeds).items():
            (self.folder / name).write_bytes(data)
        package = (dist.resolve() / IN_NODE).as_uri()
        self.start([node, str(SCRIPT), package, str(model), str(self.folder), str(threads)])
        self.ask()  # the session is made: a network it cannot run says so here

    def failed(self, said: str) -> SpaError:
        self.close()
        lines = [line for line in said.splitlines() if "Error" in line or "error" in line]
        return SpaError(f"onnxruntime-web failed: {' '.join(lines)[:300]}", "in Node", "another --against")

    def step(self) -> float:
        return float(self.ask()["ms"]) / 1e3
