"""What people see: narrow and wide windows, pipes, NO_COLOR, dry runs that write nothing, and the doctor."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_prune_cli import call

from spa.cli.terminal import console, show

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[(?:3[0-7]|4[0-7]|9[0-7]|38|48)[;0-9]*m")


@pytest.fixture
def place(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(models / "digits.onnx", tmp_path / "digits.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def on_terminal(width: int, *words: str, **environment: str) -> str:
    """What a command writes to a terminal of that width."""
    pty = pytest.importorskip("pty", reason="no pseudo-terminals here")
    ours, theirs = pty.openpty()
    try:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
        kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
        command = [sys.executable, "-c", "from spa.cli import main; main()", *words]
        process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env={**kept, "TERM": "xterm", **environment})
        os.close(theirs)
        found = b""
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # Linux says so that the other end is closed
                break
            if not part:
                break
            found += part
        assert process.wait(60) == 0, found.decode()
    finally:
        os.close(ours)
    return found.decode()


def lines(text: str) -> list[str]:
    return [ESCAPE.sub("", line).rsplit("\r", 1)[-1] for line in text.replace("\r\n", "\n").splitlines()]


@pytest.mark.parametrize("width", [30, 60, 200])
def test_numbers_are_whole_and_tables_fit(place: Path, width: int) -> None:
    written = lines(on_terminal(width, "inspect", "digits.onnx"))
    text = "\n".join(written)
    assert "36.86 k" in text and "1x32x8x8" in text
    assert "…" not in text
    drawn = [line for line in written if line and line[0] in "┏┃┡│└├"]
    assert all(len(line) <= width for line in drawn)
    assert bool(drawn) == (width > 30), "a window too narrow for the numbers gets a list"


def test_a_list_has_everything_that_the_table_has(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.table import Table

    def printed(width: int) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        table = Table("name", "bytes", "")
        table.add_row("first\\[0]", "1.23 k", "kept")
        table.add_section()
        table.add_row("total", "2.46 k", "")
        show(console(), table)
        return capsys.readouterr().out

    assert printed(20).splitlines() == ["first[0]", "  bytes: 1.23 k", "  kept", "total", "  bytes: 2.46 k"]
    assert "│ first[0] │ 1.23 k │ kept │" in printed(40)


def test_a_pipe_gets_whole_lines(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    _, out, _ = call("prune", "digits.onnx", "-n", "--ratio", "0.25")
    assert re.search(
        r"^4 of 4 groups pruned, 1 blocked; equal to the masked network on 2 inputs, error \S+$", out, re.M
    )
    _, out, _ = call("inspect", "digits.onnx")
    assert "output 'logits' of the network" in out and "…" not in out


def test_no_color_is_heeded(place: Path) -> None:
    words = ["prune", "digits.onnx", "-n", "--ratio", "0.25"]
    assert not COLOUR.search(on_terminal(100, *words, NO_COLOR="1"))
    assert COLOUR.search(on_terminal(100, *words)), "without it there is colour, so the test can fail"
    assert not ESCAPE.search(call(*words)[1])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.codegen
def test_a_dry_compile_writes_nothing(place: Path) -> None:
    before = snapshot(place)
    words = ["compile", "digits.onnx", "--target", "wasm", "--shape", "x:1,1,8,8"]
    code, out, _ = call(*words, "--dry-run", "--json")
    assert code == 0 and snapshot(place) == before
    dry = json.loads(out)
    assert dry["output"] is None and dry["targets"]["wasm"]["bytes"] > 10_000
    assert "nothing was written" in call(*words, "-n")[2]
    assert json.loads(call(*words, "--json")[1])["targets"]["wasm"]["bytes"] == dry["targets"]["wasm"]["bytes"]


def test_a_dry_update_says_what_would_change(place: Path) -> None:
    def check(*words: Any) -> tuple[int, str]:
        code, out, _ = call("check", *words)
        return code, out

    code, out = check("digits.onnx", "--update", "--dry-run")
    assert code == 0 and "would change: digits.onnx" in out and not Path("spa-baseline.json").exists()
    assert check("digits.onnx", "--update")[0] == 0
    before = snapshot(place)
    code, out = check("digits.onnx", "--update", "-n")
    assert code == 0 and "would stay as it is" in out
    code, _, err = call("check", "digits.onnx", "-n")
    assert code == 2 and "--update" in err
    assert snapshot(place) == before


def test_the_doctor_knows_packages_and_surroundings(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPA_PRUNE_SEED", "3")
    document = json.loads(call("doctor", "--json")[1])
    rows = {p["package"]: p for p in document["packages"]}
    assert rows["onnxruntime"]["ok"] and rows["onnxruntime"]["required"] and not rows["torch"]["required"]
    assert all(p["install"].startswith("pip install") for p in rows.values())
    told = [c["what"] for c in document["checks"]]
    assert any("SPA_PRUNE_SEED" in what for what in told) and all(c["ok"] for c in document["checks"])
    (place / "spa.toml").write_text("[prune.budgt]\nmacs = 1\n")
    code, out, _ = call("doctor")
    assert code == 0 and "WRONG: configuration: there is no setting 'budgt'" in out and "did you mean 'budget'?" in out
    assert json.loads(call("doctor", "--json")[1])["ok"] is False


def test_the_doctor_names_what_is_missing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata as metadata

    from spa.cli import doctor

    real = metadata.version

    def version(name: str) -> str:
        if name == "scipy":
            return "1.2"
        if name == "pillow":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    rows = {p["package"]: p for p in doctor.packages()}
    assert rows["scipy"] | {"ok": False} == rows["scipy"] and rows["scipy"]["install"] == "pip install 'scipy>=1.13'"
    assert not rows["pillow"]["ok"] and rows["numpy"]["ok"]
    assert "missing" in call("doctor")[1] and "pip install pillow" in call("doctor", "--json")[1]


def test_names_are_no_markup(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network may name its tensors like rich's markup; they are shown as they are, in tables and in lists."""
    import onnx

    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]> g (float[1,4] x) => (float[1,3] y)
        <float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}> { y = MatMul(x, w) }""")
    proto.graph.node[0].name = "[bold]layer[/bold][0]"
    onnx.save(proto, tmp_path / "m.onnx")
    for width in ("120", "20"):
        monkeypatch.setenv("COLUMNS", width)
        code, out, _ = call("inspect", tmp_path / "m.onnx")
        assert code == 0 and "[bold]layer[/bold][0]" in out
