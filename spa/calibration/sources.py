"""Where calibration inputs come from: files, folders, image folders, a function of the user's, or nothing."""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
import typing
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from spa.calibration.images import Preprocessing, find_images, frame, read_images
from spa.calibration.readers import Array
from spa.calibration.synthetic import synthetic
from spa.errors import UsageError
from spa.inputs import Feeds, index_limit

if TYPE_CHECKING:
    from spa.model import Model

ARRAYS = (".npy", ".npz")
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
FORMS = "FILE.npz, FILE.npy, a folder of images or of those, module:function, or synthetic"


def split_batches(arrays: Feeds, model: Model, batch: int = 16) -> list[Feeds]:
    """Arrays with all samples along the first axis -> feeds of the network's batch size (`batch` where it is symbolic)."""
    inputs = {v.name or "": v for v in model.ir.graph.inputs}
    fixed = {d for n in arrays if (s := inputs[n].shape) is not None and len(s) and isinstance(d := s[0], int)}
    size = min(fixed) if fixed else batch
    total = min(len(a) for a in arrays.values())
    ends = range(size, total + 1, size) if fixed else range(min(size, total), total + size, size)
    return [{n: a[e - size : e] for n, a in arrays.items()} for e in ends if e - size < total]


def load(
    source: Any, model: Model, *, sizes: dict[str, int] | None = None, seed: int = 0, batch: int = 16
) -> list[Feeds]:
    """Calibration inputs as feeds of the network's batch size.

    `source`: a path or "module:function" or "synthetic", with options as in "DIR{mean=0.5,std=0.5,samples=512}"
    (`Preprocessing`); or, in Python, an array, a mapping from input names to arrays (samples along the first axis), a
    function that returns one of those or an iterable of feeds, or ready feeds. A path or function gives at most
    `samples` of its samples, evenly spaced. Raises `UsageError` for what does not fit, `MissingTool` without Pillow."""
    if isinstance(source, list):
        return source
    text, how = read_options(str(source)) if isinstance(source, str | Path) else ("", Preprocessing())
    if text == "synthetic":
        return synthetic(model, sizes=sizes, seed=seed, samples=how.samples)
    limit = how.samples if text or callable(source) else None
    if text and not Path(text).exists() and FUNCTION.fullmatch(text):
        source = import_function(text)
    elif text:
        source = read_path(Path(text), model, how, sizes)
    where = text or getattr(source, "__name__", "")
    if callable(source):
        source = source()
    if not isinstance(source, Mapping | np.ndarray):
        parts: Any = source
        source = stack(parts, where)
    names = input_names(model)
    if isinstance(source, np.ndarray):
        source = {names[0]: source} if len(names) == 1 else {}
    if missing := [n for n in names if n not in source]:
        raise UsageError(
            f"no calibration array for the input '{missing[0]}'",
            f"found {sorted(source)}" if source else where,
            f"name the arrays {names}",
        )
    arrays = {n: fit(n, np.asarray(source[n]), model, sizes) for n in names}
    return split_batches({n: evenly(a, limit) for n, a in arrays.items()}, model, batch)


def input_names(model: Model) -> list[str]:
    initial = {v.name for v in model.ir.graph.initializers.values()}
    return [v.name or "" for v in model.ir.graph.inputs if v.name not in initial]


def read_options(text: str) -> tuple[str, Preprocessing]:
    """
    >>> read_options("pictures{mean=0.5, std=[0.5,0.4,0.5]}")[1].std
    (0.5, 0.4, 0.5)
    """
    from spa.pipeline import parse_value, split, suggest

    name, brace, rest = text.partition("{")
    if not brace or Path(text).exists():
        return text, Preprocessing()
    ((_, options),) = split("images{" + rest)
    kinds = typing.get_type_hints(Preprocessing)
    for key in options:
        if key not in kinds:
            raise UsageError(
                f"calibration inputs have no option '{key}'",
                text,
                suggest(key, kinds) or f"they have {', '.join(kinds)}",
            )
    lists = {k: f"[{v}]" if k in ("mean", "std") and not v.startswith("[") else v for k, v in options.items()}
    values = {k: parse_value(v, kinds[k], f"{{{k}=...}}") for k, v in lists.items()}
    try:
        return name.rstrip("/") or name, dataclasses.replace(Preprocessing(), **values)
    except ValueError as error:
        raise UsageError(str(error), text) from None


def read_path(path: Path, model: Model, how: Preprocessing, sizes: dict[str, int] | None) -> Any:
    """Arrays of a file, of all array files of a folder, or of its images."""
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in ARRAYS)
        return stack([read_file(f) for f in files], str(path)) if files else read_folder(path, model, how, sizes)
    return read_file(path)


def read_file(path: Path) -> Any:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return dict(loaded)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"cannot read the calibration inputs: {error}", str(path), FORMS) from None


def read_folder(path: Path, model: Model, how: Preprocessing, sizes: dict[str, int] | None) -> Feeds:
    from spa.shapes import infer, input_shape

    files = find_images(path)
    if not files:
        raise UsageError("the folder holds no images and no .npy or .npz files", str(path), FORMS)
    names = input_names(model)
    if len(names) != 1:
        raise UsageError(f"images are for networks with one input; this one has {names}", str(path), "an .npz file")
    value = next(v for v in model.ir.graph.inputs if v.name == names[0])
    shape = input_shape(value, infer(model.ir, sizes).sizes)
    if shape is None or value.dtype is None or value.shape is None:
        raise UsageError(f"the input '{names[0]}' declares no shape", str(path), "--shape NAME:1,3,224,224")
    known = [isinstance(d, int) or str(d) in (sizes or {}) for d in value.shape]
    chosen = [files[i] for i in spaced(len(files), how.samples)]
    return {names[0]: read_images(chosen, how, frame(names[0], shape, known, value.dtype.numpy(), how.size))}


def import_function(text: str) -> Any:
    """`module:function`, also from the folder that one stands in."""
    module, _, name = text.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"cannot import the calibration function: {error}", text, FORMS) from None
    finally:
        sys.path.remove(str(Path.cwd()))
    if not callable(found):
        raise UsageError("this is not a function", text, "a function without arguments that returns arrays or feeds")
    return found


def stack(parts: Iterable[Any], where: str) -> Any:
    """Arrays or mappings of arrays, one after the other along the first axis."""
    try:
        found = list(parts)
        if found and isinstance(found[0], Mapping):
            return {n: np.concatenate([np.asarray(p[n]) for p in found]) for n in found[0]}
        return np.concatenate([np.asarray(p) for p in found])
    except (TypeError, ValueError, KeyError) as error:
        raise UsageError(
            f"the calibration inputs do not fit together: {error}", where, "arrays of one shape but for the first axis"
        ) from None


def spaced(total: int, limit: int | None) -> list[int]:
    """Evenly: files and arrays are often sorted by class.

    >>> spaced(10, 3), spaced(2, 3)
    ([0, 3, 6], [0, 1])
    """
    return list(range(total)) if limit is None or total <= limit else [i * total // limit for i in range(limit)]


def evenly(array: Array, limit: int | None) -> Array:
    return array if limit is None or len(array) <= limit else array[spaced(len(array), limit)]


def fit(name: str, array: Array, model: Model, sizes: dict[str, int] | None) -> Array:
    """`array` in the input's type, once it is known to fit. Raises `UsageError` with what does not."""
    value = next(v for v in model.ir.graph.inputs if v.name == name)
    where = f"calibration array for '{name}': {array.dtype} {list(array.shape)}"
    if array.ndim == 0 or len(array) == 0:
        raise UsageError("there are no samples", where, "samples along the first axis")
    if value.shape is not None:
        declared = list(value.shape)
        misfit = len(declared) != array.ndim or any(
            isinstance(d, int) and d != n for d, n in zip(declared[1:], array.shape[1:], strict=True)
        )
        if misfit:
            hint = ""
            if len(declared) == array.ndim == 4:
                moved = (array.shape[0], array.shape[3], *array.shape[1:3])
                if all(not isinstance(d, int) or d == n for d, n in zip(declared[1:], moved[1:], strict=True)):
                    hint = "the channels stand last: array.transpose(0, 3, 1, 2)"
            shown = [d if isinstance(d, int) else str(d) for d in declared]
            raise UsageError(f"the network takes {shown}", where, hint or "samples along the first axis")
    if value.dtype is None or value.dtype == ir.DataType.STRING:
        return array
    wanted = value.dtype.numpy()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UsageError("there are values that are not finite", where, "remove the samples with NaN or infinity")
    if array.dtype != wanted:
        if array.dtype.kind not in "fiub" or (array.dtype.kind == "f" and wanted.kind in "iub"):
            raise UsageError(f"the network takes {wanted}", where, f"array.astype('{wanted}')")
        if array.dtype.kind in "iu" and wanted.kind == "f" and int(array.max()) > 1:
            warnings.warn(f"{where}: converted to {wanted} as they are, not scaled", stacklevel=3)
        array = array.astype(wanted)
    if wanted.kind in "iu":
        check_range(value, array, model, sizes, where)
    return array


def check_range(value: ir.Value, array: Array, model: Model, sizes: dict[str, int] | None, where: str) -> None:
    from spa.shapes import infer

    limit = index_limit(value, infer(model.ir, sizes))
    low, high = int(array.min()), int(array.max())
    if limit is not None and (high >= limit or low < -limit):
        raise UsageError(
            f"values from {low} to {high} index a table of {limit}", where, f"integers from 0 to {limit - 1}"
        )
