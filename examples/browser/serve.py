"""Build the demo page and serve it: python examples/browser/serve.py, then open the address it prints.

The network is models/digits.onnx, pruned to 40 % of its multiply-accumulates and compiled to WebAssembly. The folder that is
built is plain files: any static web server can serve it (--build-only makes it and stops).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
MODELS = HERE.parents[1] / "models"
PAGE = ("index.html", "demo.css", "demo.mjs", "bundle.mjs", "digits.mjs", "worker.mjs")
ORT = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
LIMIT = 300_000  # bytes of the artifact: what a visitor must load to run the network


class Handler(SimpleHTTPRequestHandler):
    """Static files; older Pythons and Windows registries do not know modules."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".wasm": "application/wasm"}

    def log_message(self, format: str, *args: object) -> None:
        pass


def prune(out: Path) -> None:
    """The bundle, through the command line as any user would; its recipe lies in it."""
    options = ["--macs", "0.4", "--calib", str(MODELS / "digits.npz"), "--target", "wasm", "--shape", "x:1,1,8,8"]
    command = [sys.executable, "-c", "from spa.cli import main; main()", "prune", str(MODELS / "digits.onnx")]
    subprocess.run([*command, "-o", str(out), *options, "--force"], check=True, stdout=subprocess.DEVNULL)


def examples() -> list[dict[str, object]]:
    """One image of each digit, of those the network never saw: pixels 0 to 16."""
    data = np.load(MODELS / "digits.npz")
    first = [int(np.flatnonzero(data["test_y"] == digit)[0]) for digit in range(10)]
    return [
        {"label": int(data["test_y"][i]), "pixels": (16 * data["test_x"][i]).round().astype(int).ravel().tolist()}
        for i in first
    ]


def runtime(given: Path | None) -> Path | None:
    """The folder of onnxruntime-web's files: --ort, or what npm put beside this file."""
    places = [given] if given else [HERE / "node_modules" / "onnxruntime-web"]
    for place in places:
        for folder in (place, place / "dist"):
            if (folder / ORT[0]).is_file():
                return folder
    if given:
        raise SystemExit(f"no onnxruntime-web in {given}: it has no {ORT[0]}")
    return None


def build(site: Path, ort: Path | None = None) -> int:
    """Write the page into `site`; returns the bytes of the artifact."""
    site.mkdir(parents=True, exist_ok=True)
    for name in PAGE:
        shutil.copy(HERE / name, site)
    (site / "examples.json").write_text(json.dumps(examples()))
    prune(site / "bundle")
    folder = site / "ort"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if ort is not None:
        for name in ORT:
            shutil.copy(ort / name, folder)
    size = sum(f.stat().st_size for f in folder.iterdir())
    package = ort.parent / "package.json" if ort is not None else None
    version = json.loads(package.read_text())["version"] if package is not None and package.is_file() else "unknown"
    (folder / "ort.json").write_text(json.dumps({"version": version if ort else None, "bytes": size}))
    return sum(f.stat().st_size for f in (site / "bundle" / "wasm").iterdir() if f.suffix in (".wasm", ".mjs"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", type=Path, default=Path("out/browser"), help="where to build [out/browser]")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--ort", type=Path, help="a copy of onnxruntime-web [node_modules beside this file]")
    parser.add_argument("--build-only", action="store_true", help="build the page and stop")
    options = parser.parse_args()
    found = runtime(options.ort)
    size = build(options.site, found)
    print(
        f"{options.site}: the artifact has {size:,} bytes, {LIMIT:,} are allowed; onnxruntime-web: {found or 'not here'}"
    )
    if size > LIMIT:
        raise SystemExit("the artifact has grown too large")
    if options.build_only:
        return
    with ThreadingHTTPServer(("127.0.0.1", options.port), partial(Handler, directory=str(options.site))) as server:
        print(f"http://127.0.0.1:{server.server_port}/  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
