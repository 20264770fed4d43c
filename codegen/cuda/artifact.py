"""A prepared network in, the files of `OUT/cuda` and their facts out: the control flow of one compilation for GPUs."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from spa.codegen import dispatch, link, tvm_api
from spa.codegen.converters import CONVERTERS
from spa.codegen.cuda import launcher, toolchain
from spa.codegen.cuda.channels_last import channels_last
from spa.codegen.cuda.launch_table import SCHEMA, Table, build_table, check_against
from spa.codegen.cuda.occupancy import occupancy
from spa.codegen.cuda.offers import OFFERS
from spa.codegen.cuda.pools import POOLS
from spa.codegen.cuda.storage import settled
from spa.codegen.heads import shared
from spa.codegen.layer import Kernel, Layer
from spa.codegen.plan_memory import Layout, plan_memory
from spa.codegen.prepare import interface
from spa.codegen.program import Program
from spa.codegen.target import Target, host
from spa.codegen.tvm_api.cuda import Device, emit_cuda, schedule_cuda


@dataclass(frozen=True, eq=False)
class Gpu:
    """A network as launches: everything that files are made of. `rows`: of the manifest's kernels, one per call.
    `pictures`: how they lie between kernels, NHWC or NCHW."""

    program: Program
    layout: Layout
    device: Device
    table: Table
    rows: Sequence[Mapping[str, Any]]
    pictures: str


Rows = Callable[[Program, Mapping[str, Sequence[tuple[Layer, Kernel]]]], list[dict[str, Any]]]


def compile_gpu(
    prepared: onnx.ModelProto, title: str, target: Target, rows: Rows
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Files and facts for a prepared model. `rows` makes the manifest's rows of a program and the kernels chosen for it."""
    name = link.c_name(title)
    return artifact_files(name, title, lower_gpu(prepared, name, target, rows), target)


def lower_gpu(prepared: onnx.ModelProto, name: str, target: Target, rows: Rows) -> Gpu:
    """A prepared model as launches."""
    inputs, outputs = interface(prepared)
    arch = target.cpu.split(",")[0]
    prepared = shared(prepared)
    network = channels_last(prepared, target)
    chosen = settled(dispatch.dispatch(network, target, OFFERS), target)
    own = {op: served[0][1].build() for op, served in chosen.kernels.items()}
    declared = {op: served[0][0].output for op, served in chosen.kernels.items()}
    module = tvm_api.import_onnx(chosen.model, declared, {**CONVERTERS, **POOLS})
    lowered = tvm_api.lower(
        module, inputs, outputs, host(), own
    )  # no code yet: what TVM asks of a target is a processor
    kernels = schedule_cuda(lowered.kernels, own, arch)
    device = emit_cuda(kernels, own, arch, {kernel: f"{name}__{kernel}" for kernel in kernels})
    layout = plan_memory(lowered.program, dict(device.scratch))
    table = build_table(lowered.program, layout, device)
    check_against(table, dict(toolchain.entries(device.source)))
    pictures = "NCHW" if network is prepared else "NHWC"
    return Gpu(lowered.program, layout, device, table, rows(lowered.program, chosen.kernels), pictures)


def artifact_files(name: str, title: str, gpu: Gpu, target: Target) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Files by name, and facts of the manifest; `missing` among them where there is no CUDA compiler."""
    archs = target.cpu.split(",")
    source = gpu.device.source
    files = {f"{name}.cu": source.encode(), f"{name}.weights.bin": weights_blob(gpu)}
    with tempfile.TemporaryDirectory(prefix="spa-") as folder:
        images = toolchain.compile_images(source, archs, Path(folder)) if gpu.table.entries else ()
    for image in images or ():
        files |= {f"{name}.{image.arch}.ptx": image.ptx, f"{name}.{image.arch}.cubin": image.cubin}
    found = [image.arch for image in images or ()]
    files |= launcher.generate(name, title, gpu.program, gpu.layout, gpu.table, found)
    files[f"{name}.launch.json"] = launch_file(name, gpu, images or ())
    library = f"lib{name}_cuda.so"
    if images is not None:
        with tempfile.TemporaryDirectory(prefix="spa-") as folder:
            files[library] = launcher.build_library(name, files, target, Path(folder))
    code = sum(len(image.cubin) + len(image.ptx) for image in images or ())
    facts: dict[str, Any] = {
        "triple": target.triple,
        "cpu": target.cpu,
        "features": list(target.features),
        "library": library if images is not None else f"{name}.cu",
        "prefix": name,
        "inputs": [t.to_json() for t in gpu.program.inputs],
        "outputs": [t.to_json() for t in gpu.program.outputs],
        "kernels": list(gpu.rows),
        "launches": len(gpu.table.entries),
        "pictures": gpu.pictures,
        "compiler": toolchain.identity(),
        "arena_bytes": gpu.layout.arena_bytes,
        "weight_bytes": gpu.layout.weight_bytes,
        "code_bytes": code or len(source),
        "peak_bytes": gpu.layout.weight_bytes
        + gpu.layout.arena_bytes
        + sum(t.nbytes for t in (*gpu.program.inputs, *gpu.program.outputs)),
    }
    if images is None:
        facts["missing"] = "no CUDA compiler: the bundle holds CUDA C, but nothing that runs"
        facts["install"] = toolchain.INSTALL
    return files, facts


def launch_file(name: str, gpu: Gpu, images: Sequence[toolchain.Image]) -> bytes:
    """The launch table as JSON; what the Python runner reads."""
    document = {
        "schema": SCHEMA,
        "name": name,
        "inputs": [{**t.to_json(), "bytes": t.nbytes} for t in gpu.program.inputs],
        "outputs": [{**t.to_json(), "bytes": t.nbytes} for t in gpu.program.outputs],
        "weights": f"{name}.weights.bin",
        "weight_bytes": gpu.layout.weight_bytes,
        "arena_bytes": gpu.layout.arena_bytes,
        "images": [
            {
                "arch": image.arch,
                "cubin": f"{name}.{image.arch}.cubin",
                "ptx": f"{name}.{image.arch}.ptx",
                "resources": resources(image, gpu.table),
            }
            for image in images
        ],
        **gpu.table.to_json(),
    }
    return (json.dumps(document, indent=1) + "\n").encode()


def resources(image: toolchain.Image, table: Table) -> dict[str, dict[str, Any]]:
    """By symbol what ptxas says, and how many blocks that leaves a multiprocessor."""
    launches = {entry.launch.symbol: entry.launch for entry in table.entries}
    found: dict[str, dict[str, Any]] = {}
    for symbol, used in sorted(image.resources.items()):
        launch = launches.get(symbol)
        found[symbol] = asdict(used)
        if launch is not None:
            threads, memory = math.prod(launch.block), launch.shared + used.shared
            fits = occupancy(image.arch, threads, used.registers, memory)
            found[symbol] |= {"occupancy": None if fits is None else asdict(fits)}
    return found


def weights_blob(gpu: Gpu) -> bytes:
    """All constants at their places."""
    blob = bytearray(gpu.layout.weight_bytes)
    for const, offset in zip(gpu.program.consts, gpu.layout.consts, strict=True):
        raw = np.ascontiguousarray(const).tobytes()
        blob[offset : offset + len(raw)] = raw
    return bytes(blob)
