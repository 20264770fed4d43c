"""What nvcc makes of the kernels: instructions, registers, nothing in local memory, occupancy; the launch table against them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sass import disassembled, find_nvdisasm

from spa.codegen.cuda import depthwise, few, simt, table, toolchain
from spa.codegen.cuda.batched import Batched, build_batched
from spa.codegen.cuda.occupancy import occupancy
from spa.codegen.cuda.product import Product, build_product
from spa.codegen.cuda.sources import Planes, Rows, Windows
from spa.codegen.cuda.strided import Strided
from spa.codegen.cuda.words import BFLOAT
from spa.codegen.cuda.writer import Ending
from spa.codegen.kernels.window import Window
from spa.codegen.layer import Arg, Step
from spa.codegen.tvm_api.cuda import Device, emit_cuda

pytestmark = pytest.mark.codegen

needs_nvdisasm = pytest.mark.skipif(find_nvdisasm() is None, reason="needs nvdisasm (pip install nvidia-cuda-nvdisasm)")
needs_nvcc = pytest.mark.skipif(toolchain.find_nvcc() is None, reason="needs nvcc")

STEPS = (Step("Add", (Arg("value", 0), Arg("tensor", 0))), Step("Relu", (Arg("value", 1),)))
NAMES = {"dense": "dense", "2:4": "sparse", "bsr": "bsr"}
WINDOW = Window(1, 200, (30, 30), (30, 30), (3, 3), (1, 1), (1, 1), (1, 1))


def ending(size: int) -> Ending:
    """A bias, a residual, an activation: what a layer of a ResNet has."""
    return Ending(True, STEPS, 0, (size,), "float32")


def kernels() -> dict[str, Any]:
    """One of each row of the tables, by name; sizes that no tile divides."""
    m, rows, planes = 300, Rows(250, 1000, "float32"), Planes(WINDOW, 1, "float32")
    nhwc = Windows(WINDOW, "float16")
    found: dict[str, Any] = {}
    for form, tiles in (("dense", table.DENSE), ("2:4", table.TWO_OF_FOUR), ("bsr", table.BLOCKS)):
        for i, tile in enumerate(tiles):
            for kind, source in (("rows", rows), ("planes", planes), ("nhwc", nhwc)):
                if kind != "rows" and i != 1:  # the way to the pixels is the same in all
                    continue
                p = Product(m, 1, source, tile, form, ending(m * source.n), 40 if form == "bsr" else 0)  # type: ignore[arg-type]
                found[f"{NAMES[form]}_{tile.name}_{kind}"] = build_product(p)
                if i == 1:
                    found[f"{NAMES[form]}_{tile.name}_{kind}_bf16"] = build_product(replace(p, operand=BFLOAT))
    for tile in table.SIMT:
        found[f"simt_{tile.name}"] = simt.build_simt(simt.Simt(m, 1, rows, tile, ending(m * rows.n)))
    for tile in table.BATCHED:
        for kind, strides in (("rows", (1, 192)), ("columns", (192, 1))):
            a = Strided(4 * 200 * 192, 0, (200, 48), (192, 1), (38400, 48), "float16")
            b = Strided(4 * 200 * 192, 0, (48, 200) if kind == "rows" else (200, 48), strides, (38400, 48), "float16")
            turned = replace(a, size=640000, shape=(200, 200), strides=(200, 1), batch=(160000, 40000))
            a = a if kind == "rows" else turned
            n = b.shape[1]
            batch = ((4, 4 * 200 * n), (4, 200 * n))
            last = Ending(False, (), 0, (), "float16")
            found[f"batched_{tile.name}_{kind}"] = build_batched(Batched(a, b, batch, n, tile, "float16", 0.125, last))
    narrow = Rows(4, 1000, "float32")
    for form, more in (("dense", {}), ("block", {"rows": 4}), ("N:M", {"pattern": (2, 4)})):
        options: dict[str, Any] = {"rows": 1, "stored": m * 500 if form == "N:M" else m * 1000, **more}
        p_few = few.Few(m, narrow, form, w_dtype="float16", ending=ending(m * 4), **options)  # type: ignore[arg-type]
        found[f"few_{form}"] = few.build_few(p_few)
    single = Planes(Window(1, 64, (30, 30), (30, 30), (3, 3), (1, 1), (1, 1), (1, 1)), 64, "float32")
    found["depthwise"] = depthwise.build_depthwise(depthwise.Depthwise(1, single, ending(64 * 900)))
    by_channels = depthwise.Depthwise(1, Windows(WINDOW, "float16", 200), ending(200 * 900))
    found["depthwise_nhwc"] = depthwise.build_depthwise(by_channels)
    return {re.sub(r"\W", "_", name): f for name, f in found.items()}


@pytest.fixture(scope="module")
def device() -> Device:
    made = kernels()
    return emit_cuda(made, made, "sm_80", {name: name for name in made})


@pytest.fixture(scope="module", params=["sm_80", "sm_90"])
def image(request: pytest.FixtureRequest, device: Device, tmp_path_factory: pytest.TempPathFactory) -> Any:
    (made,) = toolchain.compile_images(device.source, [request.param], tmp_path_factory.mktemp("nvcc")) or [None]
    return made


def launches(device: Device) -> dict[str, Any]:
    return {launch.symbol: launch for several in device.launches.values() for launch in several}


def test_launches_fit_the_kernels_parameters(device: Device) -> None:
    """As many pointers as the CUDA C takes, in its order: outputs are not const, the names are those of the arguments."""
    parameters = dict(toolchain.entries(device.source))
    assert set(parameters) == set(launches(device))
    for symbol, launch in launches(device).items():
        function = device.functions[symbol]
        assert len(parameters[symbol]) == len(launch.arguments) == len(function.params)
        bounds = re.search(rf"__launch_bounds__\((\d+)\) {symbol}\(", device.source)
        assert bounds is not None
        assert int(bounds[1]) == launch.block[0] * launch.block[1] * launch.block[2]


def test_sparse_kernels_use_sparse_tensor_cores(device: Device) -> None:
    ordered = "mma.sp::ordered_metadata.sync.aligned.m16n8k32"
    assert ordered in device.source
    assert device.source.count("ldmatrix") > 0 and "cp.async.cg.shared.global" in device.source


@needs_nvcc
def test_nothing_lies_in_local_memory(image: Any) -> None:
    assert len(image.resources) > 20
    assert {name: r for name, r in image.resources.items() if r.spills or r.stack} == {}
    assert ".local" not in image.ptx.decode()


@needs_nvcc
def test_instructions(image: Any) -> None:
    bodies = dict(re.findall(r"\.entry (\w+)\((.*?)^}", image.ptx.decode(), re.S | re.M))
    for name, body in bodies.items():
        assert ("mma.sp::ordered_metadata.sync" in body) == name.startswith("sparse"), name
        kind = "bf16" if name.endswith("bf16_kernel") else "f16"
        dense = f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32" in body
        assert dense == name.startswith(("dense", "bsr", "batched")), name
        assert ("cp.async" in body) == name.startswith(("dense", "sparse", "bsr", "simt", "batched")), name
        assert (".trans" in body) == ("planes" in name or "columns" in name), name


@needs_nvcc
@needs_nvdisasm
def test_machine_code(image: Any, tmp_path: Path) -> None:
    """What runs in the end: tensor cores where they are meant, 16 bytes at a time past the registers, nothing spilled."""
    kernels_of = disassembled(image.cubin, tmp_path)
    assert len(kernels_of) == len(image.resources) > 20
    for name, found in kernels_of.items():
        sparse, dense = name.startswith("sparse"), name.startswith(("dense", "bsr", "batched"))
        kind = ".BF16" if name.endswith("bf16_kernel") else ""
        assert (found[f"HMMA.SP.16832.F32{kind}"] > 0) == sparse, name
        assert (found[f"HMMA.16816.F32{kind}"] > 0) == dense, name
        assert (found["LDGSTS.E.BYPASS.128"] > 0) == (sparse or dense or name.startswith("simt")), name
        assert (sum(n for op, n in found.items() if op.startswith("LDSM")) > 0) == (sparse or dense), name
        assert not [op for op in found if op.split(".")[0] in ("LDL", "STL")], name


@needs_nvcc
def test_every_kernel_fits_a_multiprocessor(image: Any, device: Device) -> None:
    """At least one block at a time, at least an eighth of the threads; the big tiles trade occupancy for reuse."""
    for symbol, launch in launches(device).items():
        used = image.resources[symbol]
        fits = occupancy(image.arch, launch.block[0], used.registers, launch.shared + used.shared)
        assert fits is not None and fits.share >= 0.125, f"{symbol}: {fits}"


def test_a_compiler_that_refuses_is_told_by_its_first_error(tmp_path: Path) -> None:
    from spa.errors import SpaError

    if toolchain.find_nvcc() is None:
        pytest.skip("needs nvcc")
    with pytest.raises(SpaError, match=r"sm_999|architecture"):
        toolchain.compile_images("", ["sm_999"], tmp_path)
    with pytest.raises(SpaError, match="error"):
        toolchain.compile_images("int f() { return }", ["sm_80"], tmp_path)


@pytest.mark.skipif(toolchain.find_nvrtc() is None, reason="needs NVRTC (pip install nvidia-cuda-nvrtc)")
def test_the_run_time_compiler_takes_the_kernels_too(device: Device) -> None:
    image = toolchain.by_nvrtc(device.source, "sm_80")
    assert image.cubin.startswith(b"\x7fELF") and b".entry" in image.ptx
