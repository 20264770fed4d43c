"""The bar, on a terminal of its own: on stderr only, never without a terminal, without colours where none are wanted."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

# long work with little of it: what is told comes often enough to be drawn
CODE = """
import sys, time
from spa import progress
from spa.cli.progress import stages

with stages(bool(sys.argv[1:])) as stage:
    stage("reading")
    time.sleep(0.15)
    for i in range(5):
        progress.tell("measuring groups of a network with a long name", i, 5)
        time.sleep(0.08)
    stage("writing")
    time.sleep(0.15)
print("the result")
"""
COLOUR = re.compile(r"\x1b\[[\d;]*?(?:3\d|4\d|9\d|38;[\d;]+)m")


def on_terminal(code: str, *args: str, columns: int = 80, **variables: str) -> tuple[str, str, int]:
    """What comes out of stdout, of a terminal as stderr, and the exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env={**plain, "TERM": "xterm-256color", **variables},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        shown += data
    os.close(ours)
    out, _ = process.communicate()
    return out, shown.decode(), process.returncode


def test_the_bar_is_on_the_terminal_and_not_in_the_result() -> None:
    out, shown, code = on_terminal(CODE)
    assert (code, out) == (0, "the result\n")
    assert "reading" in shown and "measuring groups" in shown and "writing" in shown
    assert "0/5" not in shown.rpartition("writing")[2]  # a new stage starts anew
    assert "3/5" in shown and COLOUR.search(shown)
    assert shown.endswith("\x1b[2K")  # and is wiped away at the end


def test_no_colours_where_none_are_wanted() -> None:
    _, shown, code = on_terminal(CODE, NO_COLOR="1")
    assert code == 0 and "3/5" in shown and not COLOUR.search(shown)


def test_quiet_means_no_bar() -> None:
    assert on_terminal(CODE, "quiet") == ("the result\n", "", 0)


def test_a_terminal_that_cannot_move_its_cursor_shows_no_bar() -> None:
    out, shown, code = on_terminal(CODE, TERM="dumb")
    assert (code, out) == (0, "the result\n") and "\x1b" not in shown and "3/5" not in shown


@pytest.mark.parametrize("columns", [60, 30, 12, 3])
def test_on_a_narrow_terminal_the_bar_stays_one_line(columns: int) -> None:
    out, shown, code = on_terminal(CODE, columns=columns, NO_COLOR="1")
    assert (code, out) == (0, "the result\n")
    drawn = [re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", t) for t in re.split(r"[\r\n]+", shown)]
    assert max(len(t) for t in drawn) <= columns
    assert shown.count("\x1b[1A") == 1  # up only to wipe it at the end: it never took a second line


def test_without_a_terminal_there_is_nothing_but_the_result() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("the result\n", "")


def test_pruning_with_calibration_shows_its_groups(models: Path, tmp_path: Path) -> None:
    code = "import sys; from spa.cli import main; main(sys.argv[1:])"
    args = ["prune", str(models / "digits.onnx"), "--calib", str(models / "digits.npz"), "--macs", "0.5"]
    environment = {"SPA_CACHE_DIR": str(tmp_path / "cache")}
    out, shown, done = on_terminal(code, *args, "-o", str(tmp_path / "o.onnx"), **environment)
    assert done == 0 and "measuring groups" in shown
    assert "measuring groups" not in out and "\x1b" not in out and "params" in out
