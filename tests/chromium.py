"""A headless Chromium for tests: `spa.runtime.chromium`, with keys and screenshots."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spa.runtime import chromium as driven
from spa.runtime.toolchain import find


def executable() -> str | None:
    return find("chromium")


class Page(driven.Page):
    def key(self, key: str, code: int = 0, text: str = "") -> None:
        down = {"text": text} if text else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **down)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def scheme(self, name: str, media: str = "") -> None:
        """light or dark; media: print."""
        self.call("Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": name}])

    def size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def screenshot(self, file: Path, whole: bool = False) -> None:
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def chromium() -> Iterator[Page]:
    with driven.chromium(Page) as page:
        yield page
