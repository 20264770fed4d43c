"""A prepared network and a target in, the artifact's files and its facts out: the control flow of one compilation."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from spa.codegen import dispatch, kernels, link, loader, tvm_api
from spa.codegen.converters import CONVERTERS
from spa.codegen.layer import Kernel, Layer
from spa.codegen.macs import layer_macs
from spa.codegen.plan_memory import plan_memory
from spa.codegen.prepare import interface, prepare
from spa.codegen.program import Program
from spa.codegen.schedule import schedule
from spa.codegen.target import Target


@dataclass(frozen=True)
class Artifact:
    """Files of one target by name, and what its entry in the manifest says."""

    files: Mapping[str, bytes]
    facts: Mapping[str, Any]


def compile_target(
    model: onnx.ModelProto, title: str, target: Target, shapes: Mapping[str, tuple[int, ...]]
) -> Artifact:
    """Compile for one target. Deterministic: the same model and target give the same bytes. Raises `Unsupported`."""
    own_ops = frozenset(() if target.name == "cuda" else kernels.OPERATORS)
    prepared = prepare(model, shapes, tvm_api.imported_ops() | frozenset(CONVERTERS) | own_ops)
    if target.name == "cuda":
        from spa.codegen.cuda.artifact import compile_gpu

        return Artifact(*compile_gpu(prepared, title, target, _kernel_rows))
    inputs, outputs = interface(prepared)
    chosen = dispatch.dispatch(prepared, target, kernels.FAMILIES)
    own = {op: _built(served[0][1]) for op, served in chosen.kernels.items()}
    declared = {op: served[0][0].output for op, served in chosen.kernels.items()}
    module = tvm_api.import_onnx(chosen.model, declared, CONVERTERS)
    lowered = tvm_api.lower(module, inputs, outputs, target, own)
    lowered = schedule(lowered, own)
    program = lowered.program
    name = link.c_name(title)
    symbols = {kernel: f"{name}__k_{kernel}" for kernel in lowered.kernels}
    with tempfile.TemporaryDirectory(prefix="spa-") as folder:
        work = Path(folder)
        compiled = tvm_api.emit(lowered, target, symbols, work, name if target.has_threads else None)
        in_place = {op: served[0][1].in_place for op, served in chosen.kernels.items()}
        layout = plan_memory(program, compiled.scratch, in_place)
        magic = int.from_bytes(hashlib.sha256(repr((name, inputs, outputs, layout)).encode()).digest()[:8], "big")
        teams = {kernel: (own.offset, own.nbytes) for kernel, own in compiled.teams.items()}
        glue = link.generate(name, title, program, layout, symbols, magic, target, teams)
        (work / "link").mkdir()
        files = link.link(name, glue, compiled.data, target, work / "link")
    library = f"{name}.wasm" if target.is_wasm else f"lib{name}{target.library}"
    if target.is_wasm:
        files |= loader.generate(name, title, inputs, outputs, glue, files[library])
    facts = {
        "triple": target.triple,
        "cpu": target.cpu,
        "features": list(target.features),
        "library": library,
        "prefix": name,
        "inputs": [t.to_json() for t in inputs],
        "outputs": [t.to_json() for t in outputs],
        "kernels": _kernel_rows(program, chosen.kernels),
        "arena_bytes": layout.arena_bytes,
        "weight_bytes": layout.weight_bytes,
        "code_bytes": len(files[library]) - layout.weight_bytes,
        "peak_bytes": len(files[library])
        + link.HEADER_BYTES
        + layout.arena_bytes
        + sum(t.nbytes for t in (*inputs, *outputs)),
        "thread_bytes": link.own_bytes(teams) if teams else 0,
    }
    return Artifact(files, facts)


def _built(kernel: Kernel) -> Any:
    """The PrimFunc of a kernel; where the output may lie where an operand does, the compiler must not take them apart."""
    built = kernel.build()
    return built.without_attr("tirx.noalias") if kernel.in_place else built


def _kernel_rows(program: Program, own: Mapping[str, Sequence[tuple[Layer, Kernel]]]) -> list[dict[str, Any]]:
    """One row per call; the calls of a shared kernel are those of its layers, in order."""
    pending = {op: iter(served) for op, served in own.items()}
    rows = []
    for step, kernel in enumerate(call.kernel for call in program.calls):
        row: dict[str, Any] = {"layer": f"{step}:{kernel}", "kernel": kernel}
        row |= {"family": "tvm", "format": "dense", "tile": "", "macs": 0}
        row["why"] = "no kernel of our own for this operator"
        if kernel in pending:
            layer, chosen = next(pending[kernel])
            row |= {"layer": layer.name, "family": chosen.family, "format": chosen.format, "tile": chosen.tile}
            row |= {"why": chosen.why, "macs": layer_macs(layer)}
        rows.append(row)
    return rows
