"""A headless Chromium, spoken to over its own pipe (`--remote-debugging-pipe`: JSON messages that end in a zero byte): no
driver and no package is needed beside the browser."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from spa.errors import SpaError
from spa.runtime.toolchain import need

SECONDS = 300.0  # for an answer
# the browser reads from its descriptor 3 and writes to 4; both are copied first, they may be each other's
LAUNCH = (
    "import os, sys; r, w = (os.dup(os.dup(os.dup(int(n)))) for n in sys.argv[1:3])\n"
    "os.dup2(r, 3); os.dup2(w, 4); os.execvp(sys.argv[3], sys.argv[3:])"
)


class Page:
    """A tab. `errors` collects exceptions, failed loads and what the console says at level warning and above."""

    def __init__(self, write: int, read: int) -> None:
        self.write, self.read = write, read
        self.rest, self.number, self.session = b"", 0, ""
        self.errors: list[str] = []
        self.loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the DevTools protocol. Raises `SpaError` for a browser that ended or does not answer."""
        self.number += 1
        number = self.number
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        try:
            os.write(self.write, json.dumps(message).encode() + b"\0")
        except BrokenPipeError:
            raise _silent("ended") from None
        while True:
            got = self.message()
            if got.get("id") == number:
                if "error" in got:
                    raise RuntimeError(f"{method}: {got['error']['message']}")
                found: dict[str, Any] = got["result"]
                return found

    def message(self) -> dict[str, Any]:
        """The next message; events are noted."""
        until = time.monotonic() + SECONDS
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.read], [], [], max(0.0, until - time.monotonic()))
            data = os.read(self.read, 1 << 20) if ready else b""
            if not data:
                raise _silent("ended" if ready else f"does not answer for {SECONDS:.0f} s")
            self.rest += data
        text, _, self.rest = self.rest.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        self.note(found.get("method"), found.get("params", {}))
        return found

    def note(self, method: str | None, params: dict[str, Any]) -> None:
        match method:
            case "Page.loadEventFired":
                self.loaded = True
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.errors.append(params["entry"]["text"])
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.errors.append(str([a.get("value") for a in params["args"]]))
            case "Inspector.targetCrashed":
                raise _silent("crashed")

    def open(self, url: str) -> None:
        self.loaded = False
        if error := self.call("Page.navigate", url=url).get("errorText"):
            raise RuntimeError(f"{url}: {error}")
        while not self.loaded:
            self.message()

    def js(self, expression: str) -> Any:
        """The value of an expression (awaited); raises where it throws."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")


P = TypeVar("P", bound=Page)


@contextmanager
def chromium(kind: type[P]) -> Iterator[P]:
    """A page of a browser of its own; it and its profile are gone afterwards. Raises `MissingTool` without a browser."""
    program = need("chromium")
    profile = tempfile.mkdtemp(prefix="chromium-")
    to_browser, ours = os.pipe()
    theirs, from_browser = os.pipe()
    command = [program, "--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += ["--no-sandbox"] if os.geteuid() == 0 else []  # it refuses to start for root otherwise
    command += ["--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"]
    command += [f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(to_browser), str(from_browser), *command],
        pass_fds=(to_browser, from_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(to_browser)
        os.close(from_browser)
        try:
            yield kind(ours, theirs)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(ours)
            os.close(theirs)
            shutil.rmtree(profile, ignore_errors=True)


def _silent(how: str) -> SpaError:
    return SpaError(f"the browser {how}", "Chromium", "run it by hand: chromium --headless=new --dump-dom about:blank")
