"""A prepared network and a target in, the artifact's files and its facts out: the control flow of one compilation."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from spa.codegen import dispatch, link, loader, tvm_api
from spa.codegen.converters import CONVERTERS
from spa.codegen.plan_memory import plan_memory
from spa.codegen.prepare import interface, prepare
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
    prepared = prepare(model, shapes, tvm_api.imported_ops() | frozenset(CONVERTERS))
    inputs, outputs = interface(prepared)
    chosen = dispatch.dispatch(prepared, target, dispatch.FAMILIES)
    own = {op: (kernel.build(), layer.output) for op, (layer, kernel) in chosen.kernels.items()}
    lowered = tvm_api.lower(tvm_api.import_onnx(chosen.model, own, CONVERTERS), inputs, outputs, target)
    lowered = schedule(lowered, own)
    program = lowered.program
    name = link.c_name(title)
    symbols = {kernel: f"{name}__{kernel}" for kernel in lowered.kernels}
    with tempfile.TemporaryDirectory(prefix="spa-") as folder:
        work = Path(folder)
        compiled = tvm_api.emit(lowered, target, symbols, work)
        layout = plan_memory(program, compiled.scratch)
        magic = int.from_bytes(hashlib.sha256(repr((name, inputs, outputs, layout)).encode()).digest()[:8], "big")
        glue = link.generate(name, title, program, layout, symbols, magic)
        (work / "link").mkdir()
        files = link.link(name, glue, compiled.data, target, work / "link")
    library = f"{name}.wasm" if target.is_wasm else f"lib{name}{target.library}"
    if target.is_wasm:
        files |= loader.generate(name, title, inputs, outputs)
    facts = {
        "triple": target.triple,
        "cpu": target.cpu,
        "features": list(target.features),
        "library": library,
        "prefix": name,
        "inputs": [t.to_json() for t in inputs],
        "outputs": [t.to_json() for t in outputs],
        "kernels": [_kernel_row(i, call.kernel, chosen.kernels) for i, call in enumerate(program.calls)],
        "arena_bytes": layout.arena_bytes,
        "weight_bytes": layout.weight_bytes,
        "code_bytes": len(files[library]) - layout.weight_bytes,
    }
    return Artifact(files, facts)


def _kernel_row(step: int, kernel: str, own: Mapping[str, tuple[dispatch.Layer, dispatch.Kernel]]) -> dict[str, Any]:
    if kernel in own:
        layer, chosen = own[kernel]
        return {
            "layer": layer.name,
            "kernel": kernel,
            "family": chosen.family,
            "format": chosen.format,
            "tile": chosen.tile,
            "why": chosen.why,
        }
    why = "no kernel of our own for this operator"
    return {"layer": f"{step}:{kernel}", "kernel": kernel, "family": "tvm", "format": "dense", "tile": "", "why": why}
