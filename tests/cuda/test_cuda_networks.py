"""Whole networks as bundles for GPUs: compiled, then run by the Python runner on a driver whose launches are emulated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from stub import Stub, build

from spa.codegen.bundle import Bundle, compile
from spa.codegen.cuda import artifact, toolchain
from spa.errors import MissingTool, SpaError, Unsupported
from spa.runtime.cuda.driver import choose_image
from spa.runtime.load import target_of
from spa.runtime.run import open_engine

pytestmark = [
    pytest.mark.codegen,
    pytest.mark.skipif(toolchain.find_nvcc() is None, reason="needs nvcc: bundles without cubins do not run"),
]


@pytest.fixture(scope="module")
def stub_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("stub"))


@pytest.fixture
def stub(stub_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setenv("SPA_LIBCUDA", str(stub_path))
    yield Stub(stub_path)


@pytest.fixture
def functions(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The device functions of what is compiled."""
    found: dict[str, Any] = {}
    original = artifact.lower_gpu

    def lower(*arguments: Any) -> Any:
        gpu = original(*arguments)
        found.update(gpu.device.functions)
        return gpu

    monkeypatch.setattr(artifact, "lower_gpu", lower)
    return found


def compiled(model: Any, out: Path, name: str, **options: Any) -> Bundle:
    return compile(model, "cuda", out, name=name, use_cache=False, cuda_archs="sm_80", **options)


MIXED = """g (float[1,3,20,20] x) => (float[2,10] y, float[1,32,10,10] f)
<float[32,3,3,3] w1, float[32] b1, float[32,1,3,3] w2, float[48,32,1,1] w3, float[32,48,1,1] w4, float[10,32] w5, float[10] b5>
{
  c1 = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1, b1) r1 = Relu(c1)
  c2 = Conv<pads=[1,1,1,1], group=32>(r1, w2) s2 = HardSwish(c2)
  c3 = Conv(s2, w3) r3 = Relu(c3)
  c4 = Conv(r3, w4) f = Add(c4, r1)
  g = GlobalAveragePool(f) v = Flatten(g) t = Concat<axis=0>(v, v)
  y = Gemm<transB=1>(t, w5, b5)
}"""

NETWORKS = {name: zoo.NETWORKS[name] for name in ("attention", "topk", "scatter", "passthrough", "split")} | {
    "mixed": MIXED
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_bundle_computes_what_onnxruntime_does(name: str, stub: Stub, functions: Any, tmp_path: Path) -> None:
    model = zoo.network(NETWORKS[name])
    bundle = compiled(model, tmp_path / "out", name, precision="fp32")
    stub.computing(functions)
    feeds = zoo.feeds(model)
    engine = open_engine(target_of(bundle.path, "cuda"))
    got = engine.run(feeds)
    stub.check_errors()
    zoo.assert_same(got, zoo.reference(model, feeds))
    engine.step()  # as a graph
    assert "cuGraphLaunch" in stub.log or not functions
    engine.close()
    stub.check()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 4e-3), ("bf16", 3e-2)])
def test_operands_in_half_precision(
    precision: str, tolerance: float, stub: Stub, functions: Any, tmp_path: Path
) -> None:
    model = zoo.network(MIXED)
    bundle = compiled(model, tmp_path / "out", "mixed", precision=precision)
    assert bundle.manifest["targets"]["cuda"]["features"] == [precision]
    assert {row["family"] for row in bundle.manifest["targets"]["cuda"]["kernels"]} >= {"tensor", "depthwise", "few"}
    stub.computing(functions)
    feeds = zoo.feeds(model)
    got = bundle.run(feeds)
    stub.check()
    for name, expected in zoo.reference(model, feeds).items():
        np.testing.assert_allclose(got[name], expected, atol=tolerance * np.ptp(expected))


def test_what_the_manifest_says(tmp_path: Path) -> None:
    bundle = compiled(zoo.network(MIXED), tmp_path / "out", "mixed")
    facts = bundle.manifest["targets"]["cuda"]
    folder = tmp_path / "out" / "cuda"
    assert facts["cpu"] == "sm_80" and facts["features"] == ["fp16"]
    assert all(row["why"] for row in facts["kernels"])
    assert facts["weight_bytes"] == (folder / "mixed.weights.bin").stat().st_size
    table = json.loads((folder / "mixed.launch.json").read_text())
    assert {e["symbol"] for e in table["launches"]} <= {
        name for name, _ in toolchain.entries((folder / "mixed.cu").read_text())
    }
    assert all(e["call"] < len(facts["kernels"]) for e in table["launches"])
    for image in table["images"]:
        for symbol in {e["symbol"] for e in table["launches"]}:
            used = image["resources"][symbol]
            assert used["registers"] > 0 and used["stack"] == 0
            assert used["occupancy"]["blocks"] >= 1 and 0 < used["occupancy"]["share"] <= 1
    again = compiled(zoo.network(MIXED), tmp_path / "again", "mixed")
    assert again.manifest["files"] == bundle.manifest["files"]


def test_a_failing_driver_is_told_in_its_words(stub: Stub, tmp_path: Path) -> None:
    model = zoo.network(zoo.NETWORKS["twice"])
    bundle = compiled(model, tmp_path / "out", "twice")
    stub.library.stub_fail_after(9)
    with pytest.raises(SpaError, match="stub failure"):
        bundle.run(zoo.feeds(model))


def test_no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.network(zoo.NETWORKS["twice"])
    bundle = compiled(model, tmp_path / "out", "twice")
    monkeypatch.setenv("SPA_LIBCUDA", str(tmp_path / "none.so"))
    with pytest.raises(MissingTool, match="no CUDA driver"):
        bundle.run(zoo.feeds(model))


IMAGES = [{"arch": a, "cubin": f"{a}.cubin", "ptx": f"{a}.ptx"} for a in ("sm_80", "sm_86", "sm_90")]


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        ((8, 0), ("cubin", "sm_80.cubin")),
        ((8, 9), ("cubin", "sm_86.cubin")),
        ((9, 0), ("cubin", "sm_90.cubin")),
        ((12, 0), ("ptx", "sm_90.ptx")),
    ],
)
def test_images_by_card(compute: tuple[int, int], expected: tuple[str, str]) -> None:
    assert choose_image(IMAGES, compute) == expected


def test_an_old_card_is_refused() -> None:
    with pytest.raises(Unsupported, match="sm_75"):
        choose_image(IMAGES, (7, 5))
