"""A bundle for sm_90a end to end: its kernels computed through the launcher, and on which cards its code is loaded."""

from __future__ import annotations

import ctypes
import json
from typing import Any

import numpy as np
import pytest
import zoo
from stub import Stub, build
from test_cuda_kernels import two_of_four

from spa.codegen.bundle import compile
from spa.codegen.cuda import artifact, toolchain
from spa.errors import Unsupported
from spa.runtime.cuda.driver import choose_image
from spa.runtime.load import target_of
from spa.runtime.run import open_engine

pytestmark = pytest.mark.codegen

TEXT = """g (float[70,96] x) => (float[70,80] y) <float[96,128] w, float[128,80] v, float[80] b>
{ p = MatMul(x, w) q = Relu(p) r = MatMul(q, v) y = Add(r, b) }"""
NO_CODE = 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(model, folder of the bundle, device functions, the stub)"""
    if toolchain.find_nvcc() is None:
        pytest.skip("needs nvcc: without cubins there is no library")
    functions: dict[str, Any] = {}
    original = artifact.lower_gpu

    def lower(*arguments: Any) -> Any:
        gpu = original(*arguments)
        functions.update(gpu.device.functions)
        return gpu

    folder = tmp_path_factory.mktemp("wgmma")
    model = zoo.network(TEXT)
    for tensor in model.graph.initializer:
        if tensor.name == "w":
            w = np.frombuffer(tensor.raw_data, np.float32).reshape(96, 128)
            tensor.raw_data = np.ascontiguousarray(two_of_four(w.T).T).tobytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifact, "lower_gpu", lower)
        out = folder / "out"
        compile(model, "cuda", out, name="small", use_cache=False, cuda_archs="sm_90a", precision="fp16")
    return model, folder / "out", functions, build(folder)


def test_it_computes_with_warpgroup_products(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder, functions, library = made
    facts = json.loads((folder / "manifest.json").read_text())["targets"]["cuda"]
    assert [row["family"] for row in facts["kernels"]].count("wgmma") == 2
    monkeypatch.setenv("SPA_LIBCUDA", str(library))
    stub = Stub(library)
    stub.computing(functions)
    stub.library.stub_compute(9, 0)
    feeds = zoo.feeds(model)
    engine = open_engine(target_of(folder, "cuda"))
    got = engine.run(feeds)
    engine.close()
    stub.check()
    expected = zoo.reference(model, feeds)
    np.testing.assert_allclose(got["y"], expected["y"], atol=3e-3 * float(np.ptp(expected["y"])))


@pytest.mark.parametrize("compute", [(9, 0), (8, 0), (10, 0), (12, 0)])
def test_the_launcher_loads_it_on_hopper_only(
    made: Any, compute: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder, _, library = made
    monkeypatch.setenv("SPA_LIBCUDA", str(library))
    stub = Stub(library)
    stub.library.stub_compute(*compute)
    c, net = ctypes.CDLL(str(folder / "cuda" / "libsmall_cuda.so")), ctypes.c_void_p()
    code = c.small_cuda_create(0, ctypes.byref(net))
    assert code == (0 if compute == (9, 0) else NO_CODE)
    c.small_cuda_destroy(net)
    stub.check()


IMAGES = [{"arch": a, "cubin": f"{a}.cubin", "ptx": f"{a}.ptx"} for a in ("sm_80", "sm_90a")]


@pytest.mark.parametrize(
    ("compute", "expected"),
    [((8, 6), "sm_80.cubin"), ((9, 0), "sm_90a.cubin"), ((10, 0), "sm_80.ptx"), ((12, 0), "sm_80.ptx")],
)
def test_the_runner_falls_back_to_older_ptx(compute: tuple[int, int], expected: str) -> None:
    assert choose_image(IMAGES, compute)[1] == expected


def test_the_runner_refuses_other_cards() -> None:
    with pytest.raises(Unsupported, match="sm_100"):
        choose_image(IMAGES[1:], (10, 0))
