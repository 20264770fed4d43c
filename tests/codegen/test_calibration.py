"""Cost tables of a machine: fitted from times, kept, read by the choice of kernels, part of the cache's key."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tvm")

from spa.cli import main
from spa.codegen import board, calibration, probes
from spa.codegen.kernels.isa import AVX2, AVX512, NEON, RELAXED_SIMD, SIMD128, SSE, isa_of, shipped_isa
from spa.codegen.kernels.tile import dense_tile, step_cycles
from spa.codegen.target import host, resolve
from spa.errors import MissingTool, UsageError
from spa.runtime.toolchain import X86_LEVELS, find, is_aarch64

pytestmark = pytest.mark.codegen


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPA_CACHE_DIR", str(tmp_path))


def times(isa: Any, nanoseconds: float) -> dict[probes.Probe, float]:
    """What a machine with these numbers would measure."""
    return {
        p: nanoseconds * step_cycles(isa, p.rows, p.columns, probes._depth(isa, p)) for p in probes.probes(shipped(isa))
    }


def shipped(isa: Any) -> Any:
    return {"avx512": AVX512, "neon": NEON}[isa.name]


@pytest.mark.parametrize("row", [AVX512, NEON])
def test_the_numbers_of_a_machine_are_found_from_its_times(row: Any) -> None:
    machine = replace(row, load=1.1, splat=0.9, far=3.0, latency=5.0)
    found = probes.fit(row, times(machine, 0.37))
    assert found.error < 0.02 < found.before
    for name in ("load", "far"):
        assert getattr(found.isa, name) == pytest.approx(getattr(machine, name), rel=0.15)
    assert found.isa.fma == row.fma


def test_a_machine_as_shipped_stays_so() -> None:
    found = probes.fit(AVX512, times(AVX512, 2.0))
    assert found.before == pytest.approx(0, abs=1e-6) and found.isa == AVX512


@pytest.mark.parametrize("row", [SSE, AVX2, AVX512, NEON, SIMD128])
@pytest.mark.parametrize("numbers", [(0.5, 0.5), (0.9, 1.6), (0.02, 0.02), (3.0, 0.1), (0.1, 30.0)])
def test_no_numbers_make_a_tile_leave_the_registers(row: Any, numbers: tuple[float, float]) -> None:
    """wasm with the numbers of one machine had tiles of nine sums, which V8 kept in memory."""
    measured = replace(row, load=numbers[0], splat=numbers[1])
    for m, length, k in ((256, 784, 256), (64, 3136, 64), (512, 49, 512), (384, 128, 1536)):
        rows, columns = dense_tile(measured, m, length, k, k)
        assert rows * columns <= row.sums and rows * columns + columns < row.registers


def test_every_instruction_set_has_numbers_of_its_own() -> None:
    levels = [shipped_isa(host(level)) for level in X86_LEVELS] if not is_aarch64() else [SSE, AVX2, AVX512]
    rows = [*levels, *(shipped_isa(resolve(name)) for name in ("arm", "wasm")), RELAXED_SIMD]
    assert len({row.name for row in rows}) == len({replace(row, name="") for row in rows}) == 6


def test_kept_numbers_are_read_by_the_choice_of_kernels() -> None:
    target = resolve("arm")
    assert isa_of(target) == NEON and calibration.digest() == ""
    cycles = {"fma": 0.5, "load": 2.0, "splat": 1.0, "far": 4.0, "latency": 8.0}
    path = calibration.write("neon", cycles, "a board")
    assert isa_of(target) == replace(NEON, **cycles)
    assert isa_of(resolve("wasm")) == shipped_isa(resolve("wasm"))
    assert calibration.digest() != ""
    path.write_text("{}")
    with pytest.raises(UsageError, match="not a cost table"):
        isa_of(target)
    path.write_text(json.dumps({"cycles": {**cycles, "load": -1}}))
    with pytest.raises(UsageError, match="not a cost table"):
        isa_of(target)


def document(*arguments: str) -> Any:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
        main([*arguments, "--json"])
    assert ended.value.code == 0
    return json.loads(out.getvalue())


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "ROUNDS", 2)
    found = document("bench", "--calibrate")
    assert found["error"] <= found["error_before"]
    assert isa_of(resolve("host")) == replace(shipped_isa(resolve("host")), **found["cycles"])


BOARD = """#!/bin/sh
# a board: takes one line for its shell; what is for aarch64 runs there
TMPDIR=$0.tmp sh -c "$(printf %s "$1" | sed 's|&& "$d/probes"|\\&\\& QEMU "$d/probes"|')"
"""


@pytest.mark.parametrize("way", ["path", "shell"])
def test_a_board(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str) -> None:
    """The whole way, up to what runs the program: there is no board here, but an emulator."""
    emulator = find("qemu-aarch64")
    if emulator is None:
        pytest.skip("qemu-aarch64 is not installed: apt-get install qemu-user-static")
    monkeypatch.setattr(probes, "ROUNDS", 1)
    script = tmp_path / "board"
    script.write_text(BOARD.replace("QEMU", emulator))
    script.chmod(0o700)
    (tmp_path / "board.tmp").mkdir()
    on = f"{emulator} {{}}" if way == "path" else str(script)
    found = document("bench", "--calibrate", "--target", "arm", "--on", on)
    assert found["isa"] == "neon" and found["machine"].startswith("Linux aarch64")
    assert isa_of(resolve("arm")) == replace(NEON, **found["cycles"])
    assert json.loads((tmp_path / "calibration" / "neon.json").read_text())["machine"] == found["machine"]
    assert not list((tmp_path / "board.tmp").iterdir())  # nothing is left there


@pytest.mark.parametrize(
    ("on", "told"),
    [
        ("sh -c 'echo no such board >&2; exit 9' ssh", "no such board"),
        ("echo", "no times came back"),
        ("true", "no times came back"),
        ("'", "not a command"),
        ("", "not a command"),
    ],
)
def test_a_command_that_leads_nowhere(tmp_path: Path, on: str, told: str) -> None:
    (tmp_path / "program").write_bytes(b"\0" * 200_000)
    with pytest.raises(UsageError, match=told):
        board.run(tmp_path / "program", on, ["probe"])


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"")
    with pytest.raises(MissingTool, match="no-such-command is not installed"):
        board.run(tmp_path / "program", "no-such-command board", ["probe"])


def test_only_calibration_is_done_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--on", "ssh board", "net.onnx"], ["--calibrate", "--target", "wasm", "--on", "ssh board"]):
        with pytest.raises(SystemExit) as ended:
            main(["bench", *arguments])
        assert ended.value.code in (2, 3)
        assert "--on is for --calibrate" in (told := capsys.readouterr().err) or "run spa there" in told


def test_compilations_with_other_numbers_are_others_and_say_what_was_chosen(tmp_path: Path) -> None:
    import numpy as np
    from onnx import numpy_helper, parser, save

    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1,64,20,20] x) => (float[1,64,20,20] y) { y = Conv(x, w) }'
    )
    weight = np.random.default_rng(0).standard_normal((64, 64, 1, 1)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    save(model, tmp_path / "net.onnx")
    tiles = []
    for splat in (0.5, 30.0):  # where spreading a weight is expensive, it is to serve many vectors
        calibration.write("neon", {"fma": 0.5, "load": 0.5, "splat": splat, "far": 0.8, "latency": 4.0}, "a board")
        arguments = ("compile", str(tmp_path / "net.onnx"), "--target", "arm", "-o", str(tmp_path / f"b{splat}"))
        (row,) = document(*arguments, "--explain-kernels")["targets"]["arm"]["kernels"]
        assert row["family"] == "conv" and row["why"]
        tiles.append(tuple(int(n) for n in row["tile"].split("-")[0].split("x")))
    assert tiles[0][0] > tiles[1][0] and tiles[0][1] < tiles[1][1]
