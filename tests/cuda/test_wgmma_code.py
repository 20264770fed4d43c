"""What nvcc makes of warpgroup products: tensor cores fed from shared memory, in flight while threads fetch, nothing spilled."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sass import disassembled, find_nvdisasm
from test_cuda_code import STEPS, WINDOW, ending, launches

pytestmark = pytest.mark.codegen

from spa.codegen.cuda import table, toolchain  # noqa: E402
from spa.codegen.cuda.occupancy import occupancy  # noqa: E402
from spa.codegen.cuda.sources import Planes, Rows  # noqa: E402
from spa.codegen.cuda.wgmma import WgmmaProduct, build_wgmma  # noqa: E402
from spa.codegen.cuda.wgmma_offer import SUMS  # noqa: E402
from spa.codegen.cuda.writer import Ending  # noqa: E402
from spa.codegen.tvm_api.cuda import Device, emit_cuda  # noqa: E402

SHAPES = {"dense": "64x{n}x16", "sparse": "SP.64x{n}x32"}


def kernels() -> dict[str, Any]:
    """Every tile with halves in whole tiles; those with the most sums also with all that may follow, and where X comes by
    registers with fp32 rows, gathered pixels and in bf16."""
    m, whole = 300, Rows(4096, 4096, "float16")
    sources = {"rows": Rows(250, 1000, "float32"), "planes": Planes(WINDOW, 1, "float32")}
    found: dict[str, Any] = {}
    for name, form, tiles in (("dense", "dense", table.WGMMA_DENSE), ("sparse", "2:4", table.WGMMA_TWO_OF_FOUR)):
        plain = WgmmaProduct(4096, 1, whole, tiles[0], form, Ending(False, (), 0, (), "float16"))  # type: ignore[arg-type]
        for tile in tiles:
            found[f"{name}_{tile.name}_whole"] = build_wgmma(replace(plain, tile=tile))
        full = Ending(True, STEPS, 0, (4096 * 4000,), "float16", ("float16",))
        found[f"{name}_{tiles[0].name}_full"] = build_wgmma(replace(plain, m=4000, ending=full))
        big = next(t for t in tiles if t.sums <= SUMS)
        for kind, source in sources.items():
            p = replace(plain, tile=big, m=m, source=source, ending=ending(m * source.n))
            found[f"{name}_{big.name}_{kind}"] = build_wgmma(p)
        found[f"{name}_{big.name}_bf16"] = build_wgmma(replace(p, operand="bfloat16"))
    return {re.sub(r"\W", "_", name): f for name, f in found.items()}


@pytest.fixture(scope="module")
def device() -> Device:
    made = kernels()
    return emit_cuda(made, made, "sm_90a", {name: name for name in made})


@pytest.fixture(scope="module")
def image(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if toolchain.find_nvcc() is None:
        pytest.skip("needs nvcc")
    (made,) = toolchain.compile_images(device.source, ["sm_90a"], tmp_path_factory.mktemp("nvcc")) or [None]
    return made


def test_nothing_lies_in_local_memory(image: Any) -> None:
    assert len(image.resources) == 19
    assert {name: r for name, r in image.resources.items() if r.spills or r.stack} == {}


def test_every_kernel_fits_a_multiprocessor(image: Any, device: Device) -> None:
    """One block of the big tiles, which live on what is in flight; two of the others."""
    for symbol, launch in launches(device).items():
        used = image.resources[symbol]
        fits = occupancy("sm_90a", launch.block[0], used.registers, launch.shared + used.shared)
        assert fits is not None and fits.blocks >= (1 if "_256x" in symbol or "x256x" in symbol else 2), (
            f"{symbol}: {fits}"
        )


@pytest.mark.skipif(find_nvdisasm() is None, reason="needs nvdisasm (pip install nvidia-cuda-nvdisasm)")
def test_machine_code(image: Any, tmp_path: Path) -> None:
    """The products of a step set out together, and are waited for once a step: ptxas runs them one by one, each with a wait
    of its own, where it is not sure of their registers."""
    for name, found in disassembled(image.cubin, tmp_path).items():
        form, size, *_ = name.split("_")
        kind = ".BF16" if name.endswith("bf16_kernel") else ""
        n = int(size.split("x")[1])
        products = found[f"HGMMA.{SHAPES[form].format(n=n)}.F32{kind}"]
        assert products > 0, f"{name}: {[op for op in found if 'MMA' in op]}"
        assert products == sum(count for op, count in found.items() if "MMA" in op)
        assert found["WARPGROUP.DEPBAR.LE"] <= products // 2 + 1, name
        assert found["FENCE.VIEW.ASYNC.S"] == found["WARPGROUP.ARRIVE"] > 0, name
        assert found["LDGSTS.E.BYPASS.128"] > 0, name
        assert not [op for op in found if op.split(".")[0] in ("LDL", "STL")], name
