"""A Node process that is asked line by line, and leaves larger things in a folder."""

from __future__ import annotations

import json
import subprocess
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from spa.errors import SpaError


class Child(ABC):
    """`folder`: a temporary one for both sides. `start`, then `ask`: each line is answered by a line of JSON."""

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="spa-")
        self.folder = Path(self._temporary.name)
        self._errors = (self.folder / "stderr").open("w+")

    def start(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )

    def ask(self, line: str = "") -> dict[str, Any]:
        """Raises `failed` of what the process said last, where it ended instead."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait()
            self._errors.seek(0)
            raise self.failed(self._errors.read())
        found: dict[str, Any] = json.loads(answer)
        return found

    @abstractmethod
    def failed(self, said: str) -> SpaError:
        """The error, by what the process said."""

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._errors.close()
        self._temporary.cleanup()
