"""What a page would show if its commands were run now: `pytest tests/test_docs.py --update-docs`.

Only outputs that no longer agree are written, so that a page does not change with every run. Blocks that show a part of
an output (`partly`, or lines of three dots) are left for people.
"""

from __future__ import annotations

from pathlib import Path

from docs_blocks import Block, blocks
from docs_runner import Run


def updated(page: Path, folder: Path) -> str:
    """The text of the page with every output that is not right any more replaced."""
    lines = page.read_text("utf-8").splitlines()
    state = _Updating(page, folder)
    for block in blocks("\n".join(lines)):
        if block.language != "needs":
            state.block(block)
    for block, code in reversed(state.wrong):
        lines[block.first : block.first + len(block.lines)] = [(block.indent + line).rstrip() for line in code]
    return "\n".join(lines) + "\n"


class _Updating(Run):
    """Collects the blocks whose output is not right any more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.wrong: list[tuple[Block, list[str]]] = []
        self.differs = False

    def block(self, block: Block) -> None:
        self.found, self.differs = [], False
        super().block(block)
        if not self.differs or "partly" in block.marks or "..." in block.lines:
            return
        if block.language == "console":
            code = [x for _, command, _ in self.found for x in ("$ " + command, *self.printed.pop(0).splitlines())]
        else:
            code = self.printed[-1].splitlines()
        self.wrong.append((block, [line.rstrip() for line in code if line.strip()]))

    def compare(self, block: Block, shown: list[str], printed: str) -> None:
        try:
            super().compare(block, shown, printed)
        except AssertionError:
            self.differs = True
