"""Run the blocks of a page in a folder of its own, and hold what they print against what the page shows.

`spa ...` is called in this process, which saves two seconds of imports each time; other commands go through bash, with this
interpreter first on the path. A page's blocks share the folder and one Python namespace. Where a page gives several commands
for the same thing, an output that is there already is replaced (`--force`), as a reader tries one or the other.

`CHECKOUT` in the environment is the repository, for preparations that copy from it. Numbers that no two
runs share are not compared: seconds, and errors such as 5.1e-07.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from docs_blocks import REASONS, Block, blocks

ROOT = Path(__file__).parent.parent
# What readers are told to put their own file for: name -> one of ours
STANDS_FOR = {
    "model.onnx": "models/digits.onnx",
    "net.onnx": "models/digits.onnx",
    "data.npz": "models/digits.npz",
    "calib.npz": "models/digits.npz",
}
WORDS = {"MODEL": "model.onnx", "DATA.npz": "data.npz", "FILE.npz": "data.npz", "OUT.onnx": "out.onnx"}
WRITES = {"prune", "compile", "report"}
SHELL = re.compile(r"[|&;<>$`*]")


@dataclass
class Run:
    """The state of a page's blocks. `found` are the outputs by block: what `--update-docs` writes."""

    page: Path
    folder: Path
    printed: list[str] = field(default_factory=list)  # by the last block, per command
    found: list[tuple[Block, str, list[str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        shutil.copytree(ROOT / "models", self.folder / "models")
        for name, ours in STANDS_FOR.items():
            shutil.copy(self.folder / ours, self.folder / name)
        self.module = types.ModuleType("page_" + self.page.stem.replace("-", "_"))

    # One block ---------------------------------------------------------------------------------------------------

    def block(self, block: Block) -> None:
        if "illustration" in block.marks:
            reason = block.marks["illustration"]
            assert reason in REASONS, f"{self.page}:{block.first}: {reason!r} is none of {', '.join(REASONS)}"
            return
        if "file" in block.marks:
            file = self.folder / block.marks["file"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text + "\n", "utf-8")
        kinds = {
            "bash": self.bash,
            "console": self.console,
            "python": self.python,
            "text": self.text,
            "run": self.hidden,
        }
        if block.language in kinds:
            kinds[block.language](block)
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            import yaml

            yaml.safe_load(block.text)
        else:
            assert "file" in block.marks, (
                f"{self.page}:{block.first}: what is {block.language!r}? Mark it (docs_blocks.py)"
            )

    def hidden(self, block: Block) -> None:
        self.printed = [self.must(line, 0, block) for line in commands(block.lines)]

    def bash(self, block: Block) -> None:
        lines = commands(block.lines)
        expected = int(block.marks.get("exit", "0"))
        self.printed = [
            self.must(line, expected if at == len(lines) - 1 else 0, block) for at, line in enumerate(lines)
        ]

    def console(self, block: Block) -> None:
        now, shown, self.printed = "", [], []
        for line in (*block.lines, "$ "):
            if not line.startswith("$ "):
                if now and not shown and now.endswith("\\"):
                    now = now[:-1] + line.strip() + " "
                else:
                    shown.append(line)
                continue
            if now:
                self.printed.append(self.must(now, int(block.marks.get("exit", "0")), block))
                self.found.append((block, now, shown))
                self.compare(block, shown, self.printed[-1])
            now, shown = line[2:].strip(), []

    def python(self, block: Block) -> None:
        printed = io.StringIO()
        code = compile("\n" * block.first + block.text, str(self.page), "exec", dont_inherit=True)
        with self.inside(), contextlib.redirect_stdout(printed):
            sys.path.insert(0, str(self.folder))  # as `python` does for a script
            for file in self.folder.glob("*.py"):  # not what another test imported under that name
                if str(self.folder) not in str(getattr(sys.modules.get(file.stem), "__file__", "")):
                    sys.modules.pop(file.stem, None)
            exec(code, self.module.__dict__)
        self.printed = [printed.getvalue()]

    def text(self, block: Block) -> None:
        if "file" in block.marks:
            return
        assert self.printed, f"{self.page}:{block.first}: no output before this block"
        self.found.append((block, self.printed[-1], list(block.lines)))
        self.compare(block, list(block.lines), self.printed[-1])

    # Commands ----------------------------------------------------------------------------------------------------

    def must(self, line: str, expected: int, block: Block) -> str:
        code, printed = self.command(line)
        printed = printed.replace(f"{self.folder}/", "")
        assert code == expected, (
            f"{self.page}:{block.first}: {line}\nended with {code}, not {expected}:\n{printed}\n"
            f"not to be run here? put <!-- docs: illustration REASON --> before it: {', '.join(REASONS)}"
        )
        return printed

    def command(self, line: str) -> tuple[int, str]:
        for word, name in WORDS.items():
            line = re.sub(rf"(?<![\w/.]){re.escape(word)}(?![\w/.])", name, line)
        outside = re.sub(r"'[^']*'|\"[^\"]*\"", "", line.split(" #")[0])
        words = shlex.split(line, comments=True)
        if words[0] == "cd":
            self.folder = (self.folder / words[1]).resolve()
            return 0, ""
        with self.inside():
            if words[0] == "spa" and not SHELL.search(outside):
                return spa(replacing(words[1:]))
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", line], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        return done.returncode, done.stdout

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """In the page's folder, with its modules on the path and our interpreter first; warnings are those of a shell."""
        before, path, known = dict(os.environ), list(sys.path), set(sys.modules)
        folder = Path.cwd()
        os.environ |= {
            "PATH": f"{Path(sys.executable).parent}:{before['PATH']}",
            "COLUMNS": "100",
            "NO_COLOR": "1",
            "CHECKOUT": str(ROOT),
        }
        os.chdir(self.folder)
        sys.modules[self.module.__name__] = self.module
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(before)
            sys.path[:] = path
            for name in set(sys.modules) - known:  # modules of the page's folder, which the next page may have too
                if str(self.folder) in str(getattr(sys.modules[name], "__file__", "")):
                    del sys.modules[name]

    # Output ------------------------------------------------------------------------------------------------------

    def compare(self, block: Block, shown: list[str], printed: str) -> None:
        numbers, partly = "numbers" in block.marks, "partly" in block.marks
        wanted, got = [same(x, numbers) for x in shown], [same(x, numbers) for x in printed.splitlines()]
        if difference := unlike([x for x in wanted if x], [x for x in got if x], partly):
            raise AssertionError(
                f"{self.page}:{block.first}: the page shows\n    {difference}\nbut the command printed\n{printed}\n"
                "right so? pytest tests/test_docs.py --update-docs"
            )


def commands(lines: tuple[str, ...]) -> list[str]:
    r"""
    >>> commands(("# first", "spa inspect \\", "  net.onnx", "", "spa doctor"))
    ['spa inspect net.onnx', 'spa doctor']
    """
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [line.strip() for line in joined if line.strip() and not line.strip().startswith("#")]


def replacing(words: list[str]) -> list[str]:
    """With --force where the output is there."""
    given = [words[at + 1] for at, word in enumerate(words[:-1]) if word in ("-o", "--output")]
    replaces = not given or Path(given[0]).exists()
    return [*words, "--force"] if words[0] in WRITES and replaces and "--help" not in words else words


def spa(words: list[str]) -> tuple[int, str]:
    from spa.cli import main

    printed, code = io.StringIO(), 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main(words)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return code, printed.getvalue()


VARIES = (
    (re.compile(r"\d+(\.\d+)? ?(ns|µs|us|ms|s|min)\b"), "TIME"),
    (re.compile(r"\d+(\.\d+)?e[-+]?\d+"), "SMALL"),
)
NUMBER = re.compile(r"\d[\d,]*(\.\d+)?( [kMG]\b)?")
BOXES = re.compile(r"[─━┏┓┗┛┌┐└┘├┤┬┴┼┳┻╇╈┡┩╞╡═]+")


def same(line: str, numbers: bool) -> str:
    """A line without what differs from run to run.

    >>> same("small.onnx  (0.13 s), error 5.1e-07", False)
    'small.onnx (TIME), error SMALL'
    >>> same("┃ 16,634 ┃ 97.56%", True)
    '┃ N ┃ N%'
    """
    for what, name in VARIES:
        line = what.sub(name, line)
    if numbers:
        line = NUMBER.sub("N", line)
    return re.sub(r"\s+", " ", BOXES.sub("", line)).strip()


def unlike(wanted: list[str], got: list[str], partly: bool) -> str:
    """The first line that is not there; a line of three dots stands for any number of lines.

    >>> unlike(["a", "...", "d"], ["a", "b", "c", "d"], False)
    ''
    >>> unlike(["a", "d"], ["a", "b", "c", "d"], False)
    'd'
    >>> unlike(["b", "d"], ["a", "b", "c", "d"], True)
    ''
    """
    at, loose = 0, partly
    for line in wanted:
        if line == "...":
            loose = True
            continue
        while loose and at < len(got) and got[at] != line:
            at += 1
        if at >= len(got) or got[at] != line:
            return line
        at, loose = at + 1, partly
    return "" if loose or at == len(got) else f"(no more lines), but there is: {got[at]}"


def run(page: Path, folder: Path) -> Run:
    """All blocks of a page, as far as the first that is wrong."""
    state = Run(page, folder)
    for block in blocks(page.read_text("utf-8")):
        if block.language != "needs":
            state.block(block)
    return state
