"""The networks that ship with the project are what models/README.md says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_text import ops, run

import spa


def stated(models: Path) -> dict[str, tuple[float, int]]:
    """Network -> (accuracy in percent, number of test samples) from the table of the README."""
    rows = re.findall(r"\| `(\w+)\.onnx` .*\| ([\d.]+) % of (\d+)", (models / "README.md").read_text("utf-8"))
    return {name: (float(percent), int(count)) for name, percent, count in rows}


@pytest.mark.parametrize("name", ["digits", "cancer"])
def test_accuracy(name: str, models: Path) -> None:
    percent, count = stated(models)[name]
    data = np.load(models / f"{name}.npz")
    (logits,) = run(spa.load(models / f"{name}.onnx"), {"x": data["test_x"]})
    assert len(data["test_y"]) == count
    assert round(100 * float(np.mean(logits.argmax(1) == data["test_y"])), 2) == percent


@pytest.mark.parametrize("name", ["digits", "cancer"])
def test_what_the_commands_of_the_documentation_need(name: str, models: Path) -> None:
    proto = onnx.load(models / f"{name}.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert "BatchNormalization" in ops(spa.load(proto))
    data = np.load(models / f"{name}.npz")
    assert len(data["x"]) == 256 and np.array_equal(data["x"], data["calib_x"])
    train = {row.tobytes() for row in data["calib_x"]}
    assert not any(row.tobytes() in train for row in data["test_x"])


def test_they_are_small(models: Path) -> None:
    assert sum(f.stat().st_size for f in models.iterdir() if f.suffix in (".onnx", ".npz")) < 400_000


def test_no_folder_of_the_machine_they_were_made_on_is_in_them(models: Path) -> None:
    for file in models.glob("*.onnx"):
        assert not re.search(rb"/(home|root|tmp|Users|usr|work)/|site-packages", file.read_bytes()), file.name
