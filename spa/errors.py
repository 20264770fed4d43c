"""What can go wrong, and the exit code of each: the one place where both stand."""

from __future__ import annotations

from typing import ClassVar


class SpaError(Exception):
    """An error a user can act on: `what` happened, `where`, and a `hint` on what to try."""

    exit_code: ClassVar[int] = 70

    def __init__(self, what: str, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.hint = what, where, hint

    def __str__(self) -> str:
        return "\n".join(
            filter(None, [self.what, self.where and f"  at: {self.where}", self.hint and f"  try: {self.hint}"])
        )


class CheckFailed(SpaError):
    """It ran, but a budget, a drift limit or the verification does not hold."""

    exit_code = 1


class UsageError(SpaError):
    """The call or the configuration does not make sense."""

    exit_code = 2


class ModelError(SpaError):
    """The model cannot be read: missing, truncated, not ONNX, or invalid."""

    exit_code = 2


class Unsupported(SpaError):
    """A model or an op that cannot do what was asked."""

    exit_code = 3


class MissingTool(SpaError):
    """A program or package that is needed is not installed; the hint is the command that installs it."""

    exit_code = 4
