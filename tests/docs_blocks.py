"""The code blocks of a page of documentation, as data.

A block is fenced, or indented by four spaces after an empty line (then it is shell: `console` where its first line starts
with `$ `, else `bash`). What a block is for follows from its language:

| language | what the tests do with it |
|---|---|
| `bash` | run line by line; each line must end with 0 |
| `console` | `$ ` lines are run, and what stands below each is compared with what it prints |
| `python` | run in one namespace per page; must not raise |
| none, `text` | compared with what the block before printed (the last line of it, for `bash`) |
| `toml`, `json`, `yaml` | read |

A comment on the line before says what else holds, several words separated by semicolons:

    <!-- docs: file spa.toml -->          the block is written to that file
    <!-- docs: exit 1 -->                 the (last) command ends so
    <!-- docs: numbers vary -->           numbers in the output are those of one machine: only words are compared
    <!-- docs: partly -->                 the output shows some of the lines printed, in order
    <!-- docs: illustration REASON -->    not run; REASON is one of `REASONS`
    <!-- docs: run COMMAND -->            stands alone: run, not shown (what a reader is assumed to have)
    <!-- docs: python CODE -->            likewise, in the page's namespace
    <!-- docs: needs codegen cc -->       stands alone: the page is skipped where one of these is missing
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

REASONS = {
    "shared": "needs networks or data under other licences, which do not ship with the project",
    "network": "installs or downloads something",
    "device": "needs hardware that a test machine lacks: a GPU, a board",
    "service": "runs inside a service: GitHub, GitLab, a cluster, a container",
    "minutes": "takes minutes, and is run by hand or by .ci/run",
    "diagram": "a drawing, a formula or the form of something, no code",
    "elsewhere": "runs in a test of its own, which the page or the block names",
}

LANGUAGES = {"": "text", "text": "text", "sh": "bash", "shell": "bash"}
MARK = re.compile(r"^\s*<!-- docs: (?P<words>.*?) ?-->\s*$", re.DOTALL)
FENCE = re.compile(r"^(?P<fence>`{3,}|:{3,})(?P<info>.*)$")


@dataclass(frozen=True)
class Block:
    """Code of a page.

    language: one of the table above, or another, which then must be an illustration
    lines:    without fence and indentation
    first:    index of the first of them in the page
    indent:   of each line in the page
    marks:    name -> rest, of the comment before it
    """

    language: str
    lines: tuple[str, ...]
    first: int
    indent: str = ""
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def blocks(text: str) -> list[Block]:
    """All blocks in order; hidden commands are blocks of the language `run`, requirements of the language `needs`.

    >>> [(b.language, b.lines) for b in blocks("Try\\n\\n    spa --help\\n\\n```python\\nimport spa\\n```")]
    [('bash', ('spa --help',)), ('python', ('import spa',))]
    """
    lines = text.splitlines()
    found: list[Block] = []
    marks: dict[str, str] = {}
    at = 0
    while at < len(lines):
        end = at + 1
        if lines[at].lstrip().startswith("<!-- docs:"):
            while "-->" not in lines[end - 1]:
                end += 1
            marks = _marks("\n".join(lines[at:end]))
            alone = [name for name in ("run", "python", "needs") if name in marks]
            found += [Block(name, tuple(marks.pop(name).splitlines()), at) for name in alone]
        elif fence := FENCE.match(lines[at]):
            while end < len(lines) and lines[end].strip() != fence["fence"]:
                end += 1
            if not fence["info"].strip().startswith("{"):  # a directive of MyST is no code
                language = fence["info"].strip().split(" ")[0]
                language = LANGUAGES.get(language, language)
                found.append(Block(language, tuple(lines[at + 1 : end]), at + 1, "", marks))
            end, marks = end + 1, {}
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1].strip() or _is_mark(lines[at - 1])):
            if not _in_list(lines, at):
                while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                    end += 1
                while not lines[end - 1].strip():
                    end -= 1
                code = tuple(line[4:] for line in lines[at:end])
                language = "console" if code[0].startswith("$ ") else "bash"
                found.append(Block(language, code, at, "    ", marks))
            marks = {}
        elif lines[at].strip():
            marks = {}
        at = end
    return found


def _is_mark(line: str) -> bool:
    return line.rstrip().endswith("-->")


def _in_list(lines: list[str], at: int) -> bool:
    """Indented text below an item of a list belongs to the item."""
    for line in reversed(lines[:at]):
        if line.strip() and not line.startswith(" "):
            return bool(re.match(r"([-*]|\d+\.) ", line))
    return False


def _marks(comment: str) -> dict[str, str]:
    """
    >>> _marks("<!-- docs: exit 1; numbers vary -->")
    {'exit': '1', 'numbers': 'vary'}
    """
    found = MARK.match(comment)
    assert found is not None, comment
    if hidden := re.match(r"(run|python)\s+(.*)", found["words"], re.DOTALL):  # may hold semicolons of its own
        return {hidden[1]: hidden[2]}
    pairs = (word.strip().partition(" ") for word in found["words"].split(";"))
    return {name: rest for name, _, rest in pairs}


def pages(root: Path) -> list[Path]:
    """README.md, examples/README.md and all pages below docs/, but for what a build wrote."""
    found = (page for page in sorted((root / "docs").rglob("*.md")) if "_build" not in page.parts)
    return [root / "README.md", root / "examples" / "README.md", *found]


def illustrations(root: Path) -> list[tuple[str, int, str]]:
    """(page, line, reason) of every block that is not run."""
    return [
        (page.relative_to(root).as_posix(), block.first + 1, block.marks["illustration"])
        for page in pages(root)
        for block in blocks(page.read_text("utf-8"))
        if "illustration" in block.marks
    ]
