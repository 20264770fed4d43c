"""A page of headless Chromium as an engine for the ES modules of bundles; others may run in the same page.

The page comes from a server in this process, with the headers under which a page may share memory with workers.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from spa.errors import SpaError
from spa.runtime.chromium import Page, chromium
from spa.runtime.engine import split
from spa.runtime.load import Target
from spa.runtime.module import check_threads
from spa.runtime.tensor import Array, ordered

SCRIPTS = Path(__file__).parent / "wasm"
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
TYPES = {".html": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm"}
PAGE = (
    b'<!doctype html><title>spa</title><link rel="icon" href="data:,"><script type="module" src="/page.mjs"></script>'
)


class Site:
    """A server for one page on this machine: `files` by path, as bytes or where they lie; what the page posts is in `posted`."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.files: dict[str, bytes | Path] = {"/index.html": PAGE}
        self.files |= {f"/{name}": SCRIPTS / name for name in ("page.mjs", "driver.mjs", "ort.mjs")}
        self.posted: dict[str, bytes] = {}
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                found = site.files.get(self.path)
                data = found.read_bytes() if isinstance(found, Path) else found
                self.answer(200 if data is not None else 404, data or b"")

            def do_POST(self) -> None:
                site.posted[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
                self.answer(200, b"")

            def answer(self, code: int, data: bytes) -> None:
                self.send_response(code)
                fields = {"Content-Type": TYPES.get(Path(self.path).suffix, "application/octet-stream"), **headers}
                for name, value in (fields | {"Content-Length": str(len(data))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Tab:
    """A browser with one page, in which several subjects run; each has a number and the files under it."""

    def __init__(self, headers: Mapping[str, str] = ISOLATED) -> None:
        with ExitStack() as stack:
            self.page = stack.enter_context(chromium(Page))
            self.site = Site(headers)
            stack.callback(self.site.close)
            self.page.open(f"{self.site.address}/index.html")
            self._open, self._numbers = stack.pop_all(), 0

    def open(self, kind: str, files: Mapping[str, bytes | Path], module: str, threads: int) -> int:
        """Make a subject, `ours` or `theirs`, of the module at that path; `files` by name are served under its number."""
        number, self._numbers = self._numbers, self._numbers + 1
        self.site.files |= {f"/{number}/{name}": data for name, data in files.items()}
        url = f"{self.site.address}/{number}/{module}"
        self.page.js(f"spa.{kind}({number}, {json.dumps(url)}, {threads})")
        return number

    def ask(self, number: int, command: str, *arguments: int) -> dict[str, Any]:
        given = ", ".join(map(str, arguments))
        found: dict[str, Any] = self.page.js(f"spa.subjects[{number}].{command}({given})")
        return found

    def close(self) -> None:
        self._open.close()


class Chromium:
    """The ES module in a page, as a user's page would load it; in a page of its own without `tab`."""

    def __init__(self, target: Target, threads: int = 1, tab: Tab | None = None) -> None:
        check_threads(target, threads)
        self.target, name = target, target.prefix
        files = [target.library, f"{name}.mjs", *([f"{name}.worker.mjs"] if threads > 1 else [])]
        checked: dict[str, bytes | Path] = {file: target.file(file) for file in files}
        self.tab, self._own = tab or Tab(), tab is None
        try:
            self._number = self.tab.open("ours", checked, f"{name}.mjs", threads)
        except RuntimeError as error:
            if self._own:
                self.tab.close()
            raise self._failed(error) from None

    def _ask(self, command: str, *arguments: int) -> dict[str, Any]:
        try:
            return self.tab.ask(self._number, command, *arguments)
        except RuntimeError as error:
            raise self._failed(error) from None

    def _failed(self, error: RuntimeError) -> SpaError:
        return SpaError(f"{self.target.prefix} failed in Chromium: {str(error)[:300]}", "runtime")

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        site, number = self.tab.site, self._number
        site.files[f"/{number}/inputs"] = b"".join(a.tobytes() for a in ordered(feeds, self.target.inputs))
        self._ask("run")
        return split(site.posted.pop(f"/{number}/outputs"), self.target.outputs)

    def step(self) -> float:
        return float(self._ask("step")["ms"]) / 1e3

    def parts(self) -> int:
        return int(self._ask("parts")["parts"])

    def part(self, index: int) -> float:
        return float(self._ask("part", index)["ms"]) / 1e3

    def close(self) -> None:
        """With its page, where that is its own; else its threads end."""
        if self._own:
            self.tab.close()
        else:
            self.tab.ask(self._number, "close")
