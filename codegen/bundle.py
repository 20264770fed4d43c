"""A bundle: a network, its artifacts for one or more targets, and a manifest that says what they are.

    bundle = compile("model.onnx", target=["host", "wasm"], out="model.spa")
    outputs = bundle.run({"input": x})

Heavy imports (TVM, onnxruntime) happen inside, and only when the cache has nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spa._version import __version__
from spa.errors import MissingTool, ModelError, Unsupported, UsageError
from spa.runtime.load import SCHEMA, read_manifest
from spa.runtime.tensor import Array

if TYPE_CHECKING:
    import onnx

    from spa.model import Model

Shapes = Mapping[str, Sequence[int]]
RESERVED = frozenset({"model.onnx", "manifest.json"})


@dataclass(frozen=True)
class Bundle:
    """A folder with a manifest. `manifest` is its content as plain data."""

    path: Path
    manifest: Mapping[str, Any] = field(repr=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Bundle:
        """Open a bundle. Raises `UsageError` for a folder that is none, `ModelError` for one that cannot be read."""
        return cls(Path(path), read_manifest(Path(path)))

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(self.manifest["targets"])

    def run(self, feeds: Mapping[str, Array], target: str | None = None, engine: str | None = None) -> dict[str, Array]:
        """Outputs by name. Without `target`: the only one, or `host`. `engine`: native, qemu, wasmtime, node, chromium."""
        from spa.runtime.run import run

        return run(self.path, feeds, target, engine)


@dataclass(frozen=True, eq=False)
class _Source:
    name: str
    data: bytes
    message: onnx.ModelProto

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def compile(
    model: Model | onnx.ModelProto | str | os.PathLike[str],
    target: str | Sequence[str] = "host",
    out: str | os.PathLike[str] | None = None,
    shapes: Shapes | None = None,
    host_level: str | None = None,
    *,
    force: bool = False,
    name: str | None = None,
    extra_files: Mapping[str, bytes] | None = None,
    use_cache: bool = True,
    cuda_archs: str | None = None,
    precision: str | None = None,
    relaxed_simd: bool = False,
    wasm_threads: bool = False,
) -> Bundle:
    """Compile a network into a bundle at `out` (a temporary folder without it).

    `shapes` fixes the shapes of inputs; where only a leading axis is open, it is 1. `host_level` names an x86-64 level of
    the host other than this machine's, `cuda_archs` the architectures of GPUs ("sm_80,sm_90") and `precision` that of their
    products (fp16, bf16 or fp32), `name` the model; `relaxed_simd` lets wasm use multiply-adds that older engines lack, `wasm_threads` run in several threads;
    `extra_files` are put into the bundle as they are. Nothing is written unless every target compiles; with no target the
    bundle holds the network and the extra files alone.
    Raises `Unsupported`, `MissingTool`, `ModelError` or `UsageError`.
    """
    from spa.codegen.target import resolve

    names = list(dict.fromkeys([target] if isinstance(target, str) else target))
    targets = [resolve(n, host_level, cuda_archs, precision, relaxed_simd, wasm_threads) for n in names]
    extra = dict(extra_files or {})
    for path in extra:
        if path in RESERVED or path.split("/")[0] in names or Path(path).is_absolute() or ".." in Path(path).parts:
            raise UsageError(f"'{path}' cannot be an extra file of a bundle")
    if out is not None:
        _check_out(Path(out), force)
    source = _read(model, name)
    fixed = batch_of_one(source.message, {k: tuple(int(d) for d in v) for k, v in (shapes or {}).items()})
    artifacts = {t.name: _artifact(source, t, fixed, use_cache) for t in targets}
    files: dict[str, bytes] = {"model.onnx": source.data, **extra}
    for t, (built, _) in artifacts.items():
        files |= {f"{t}/{file}": data for file, data in built.items()}
    first = artifacts[names[0]][1] if names else declared(source.message)
    manifest = {
        "schema": SCHEMA,
        "spa": __version__,
        "name": source.name,
        "source_sha256": source.sha256,
        "inputs": first["inputs"],
        "outputs": first["outputs"],
        "targets": {
            t: {"path": t, **{k: v for k, v in facts.items() if k not in ("inputs", "outputs", "install")}}
            for t, (_, facts) in artifacts.items()
        },
        "files": {path: hashlib.sha256(data).hexdigest() for path, data in sorted(files.items())},
    }
    files["manifest.json"] = (json.dumps(manifest, indent=1) + "\n").encode()
    lacking = next((facts for _, facts in artifacts.values() if "missing" in facts), None)
    if out is None and lacking is None:
        folder = Path(tempfile.mkdtemp(prefix="spa-bundle-"))
        bundle = Bundle(folder, manifest)
        weakref.finalize(bundle, shutil.rmtree, folder, ignore_errors=True)  # it lives as long as its bundle
        _write(folder, files)
        return bundle
    if out is not None:
        _place(Path(out), files)
    if lacking is not None:  # what there is was written
        raise MissingTool(lacking["missing"], str(out or ""), lacking["install"])
    assert out is not None
    return Bundle(Path(out), manifest)


def batch_of_one(message: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """`shapes`, and for each input of which only the leading axis is open, that axis: 1, or what `shapes` gives its symbol."""
    found = dict(shapes)
    initial = {t.name for t in message.graph.initializer}
    inputs = {v.name: v.type.tensor_type.shape.dim for v in message.graph.input if v.name not in initial}
    given = {
        d.dim_param: n for name in found if name in inputs for d, n in zip(inputs[name], found[name], strict=False)
    }
    for name, dims in inputs.items():
        open_axes = [i for i, d in enumerate(dims) if not d.HasField("dim_value")]
        if name not in found and open_axes == [0]:
            batch = given.get(dims[0].dim_param, 1) if dims[0].dim_param else 1
            found[name] = (batch, *(d.dim_value for d in dims[1:]))
    return found


def declared(message: onnx.ModelProto) -> dict[str, Any]:
    """Inputs and outputs as the network declares them; a symbolic axis is its name."""
    import onnx

    def tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
        kind = value.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim]
        return {"name": value.name, "dtype": onnx.TensorProto.DataType.Name(kind.elem_type).lower(), "shape": dims}

    initial = {t.name for t in message.graph.initializer}
    return {
        "inputs": [tensor(v) for v in message.graph.input if v.name not in initial],
        "outputs": [tensor(v) for v in message.graph.output],
    }


def _artifact(
    source: _Source, target: Any, shapes: Mapping[str, tuple[int, ...]], use_cache: bool
) -> tuple[dict[str, bytes], dict[str, Any]]:
    from spa.codegen import cache, calibration

    options = {"target": repr(target), "name": source.name, "shapes": sorted(shapes.items()), **_tools(target)}
    options |= {"calibration": calibration.digest()}
    entry = cache.key(source.sha256, options)
    found = cache.read(entry) if use_cache else None
    if found is not None:
        return found
    from spa.codegen.lower import compile_target

    artifact = compile_target(source.message, source.name, target, shapes)
    files, facts = dict(artifact.files), json.loads(json.dumps(artifact.facts))
    if use_cache and "missing" not in facts:
        cache.write(entry, files, facts)
    return files, facts


def _tools(target: Any) -> dict[str, str]:
    """Compilers that an artifact depends on beside the packages that every target needs."""
    if target.name != "cuda":
        return {}
    from spa.codegen.cuda.toolchain import identity

    return {"cuda": identity()}


def _read(model: Model | onnx.ModelProto | str | os.PathLike[str], name: str | None) -> _Source:
    """Bytes, message and name of a model; a path does not go through `spa.model`, which takes seconds to import."""
    import onnx

    if isinstance(model, onnx.ModelProto):
        return _Source(name or model.graph.name or "model", _serialize(model), model)
    if not isinstance(model, (str, os.PathLike)):
        message = model.to_proto()
        return _Source(name or model.name, _serialize(message), message)
    path = Path(model)
    try:
        data = path.read_bytes()
        message = onnx.ModelProto.FromString(data)
        tensors = list(onnx.external_data_helper._get_all_tensors(message))
        if not message.graph.node and not message.graph.output:
            raise ValueError("no graph")
    except Exception:
        from spa.model import load

        load(path)  # says what is wrong, in its own words
        raise ModelError(f"{path} cannot be read", hint="export the network again") from None
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in tensors):
        from spa.model import load

        message = load(path).to_proto()
        data = _serialize(message)
    return _Source(name or path.stem, data, message)


def _serialize(message: onnx.ModelProto) -> bytes:
    try:
        return bytes(message.SerializeToString(deterministic=True))
    except Exception as error:
        raise Unsupported("a model of more than 2 GB cannot be compiled", hint="split it, or prune it first") from error


def _check_out(out: Path, force: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise UsageError(f"{out} exists", hint="--force to replace it, or another -o")
    if not (out.is_dir() and (out / "manifest.json").is_file()):
        raise UsageError(f"{out} is not a bundle and will not be replaced", hint="another -o")


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for path, data in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)


def _place(out: Path, files: Mapping[str, bytes]) -> None:
    """Write beside `out` and rename: the bundle is whole or not there. An old one is moved away first."""
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    try:
        _write(stage / "new", files)
        if out.exists():
            out.rename(stage / "old")
        try:
            (stage / "new").rename(out)
        except OSError:
            if (stage / "old").exists():
                (stage / "old").rename(out)
            raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)
