"""Interrupted at any moment, a prune leaves the input as it was, no partial output and no temporary file to mistake."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from oracle_slice import folder_state

TRIALS = 5  # per signal


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough (8 MB) that writing takes a while."""
    import numpy as np

    n = 640
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for i in range(5):
        weights.append(onnx.numpy_helper.from_array(rng.standard_normal((n, n)).astype(np.float32), f"w{i}"))
        nodes += [
            onnx.helper.make_node("Gemm", [last, f"w{i}"], [f"h{i}"]),
            onnx.helper.make_node("Relu", [f"h{i}"], [f"r{i}"]),
        ]
        last = f"r{i}"
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(nodes, "g", [info("x", 1, [1, n])], [info(last, 1, [1, n])], weights)
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def command(network: Path, out: Path) -> list[str]:
    code = "import sys; from spa.cli import main; main(sys.argv[1:])"
    return [
        sys.executable,
        "-c",
        code,
        "prune",
        str(network),
        "-o",
        str(out),
        "--ratio",
        "0.5",
        "--plan",
        str(out) + ".json",
    ]


def test_interrupts_leave_the_old_state(network: Path, tmp_path: Path) -> None:
    before = network.read_bytes()
    start = time.monotonic()
    whole = tmp_path / "whole.onnx"
    subprocess.run(command(network, whole), check=True, capture_output=True)
    seconds = time.monotonic() - start
    expected = whole.read_bytes()
    rng = random.Random(0)
    ended = 0
    for kind in (signal.SIGINT, signal.SIGKILL):
        for trial in range(TRIALS):
            folder = tmp_path / f"{kind.name}{trial}"
            folder.mkdir()
            out = folder / "out.onnx"
            process = subprocess.Popen(command(network, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            time.sleep(rng.uniform(0.05, 1.0) * seconds)
            process.send_signal(kind)
            process.communicate()
            ended += process.returncode != 0
            state = folder_state(folder)
            assert network.read_bytes() == before
            # what has a final name is whole; what was cut off is a hidden .tmp file, and only a kill leaves one
            finished = {n for n in state if not Path(n).name.startswith(".")}
            assert finished <= {"out.onnx", "out.onnx.json"}
            if "out.onnx" in finished:
                assert state["out.onnx"] == expected
            left = [n for n in state if n not in finished]
            assert all(n.endswith(".tmp") for n in left)
            if kind == signal.SIGINT:
                assert not left
        # what was left does not stand in the way of the next run
        again = subprocess.run([*command(network, out), "--force"], capture_output=True)
        assert again.returncode == 0 and out.read_bytes() == expected
    assert ended >= TRIALS  # most did come before the end
