"""The baseline: what every model measured when it was last accepted. One JSON file, committed beside the models.

Written so that a diff reads well: models sorted by name, layers in the order of the graph, one line each, a newline at
the end. `docs/schemas/baseline.json` is its JSON Schema.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spa._version import __version__
from spa.errors import UsageError

if TYPE_CHECKING:
    from spa.checking.metrics import Layer, Measured

SCHEMA = 1
CONFLICT = ("<" * 7 + " ", ">" * 7 + " ")
MEND = "bring back the committed one (git checkout -- {0}), or write it anew: spa check --update"


@dataclass(frozen=True)
class Baseline:
    """Models by their path from the configuration. `versions`: of what has a say in the numbers."""

    models: Mapping[str, Measured] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def versions() -> dict[str, str]:
    """Of spa, of ONNX (shape inference), and of zlib (gzipped sizes)."""
    import zlib
    from importlib.metadata import version

    return {"spa": __version__, "onnx": version("onnx"), "zlib": zlib.ZLIB_RUNTIME_VERSION}


def load(path: Path) -> Baseline | None:
    """The baseline in a file; None where there is no file. Raises `UsageError` for one that cannot be read, with the way to
    mend it."""
    if not path.exists():
        return None
    mend = MEND.format(path)
    try:
        text = path.read_text("utf-8")
        if any(line.startswith(CONFLICT) for line in text.splitlines()):
            raise UsageError(
                f"the baseline {path} holds the marks of a merge conflict",
                hint="take either side (git checkout --theirs), then spa check --update",
            )
        document = json.loads(text)
    except OSError as error:
        raise UsageError(f"the baseline {path} cannot be read: {error.strerror}", hint="check the path") from None
    except ValueError as error:  # of JSON, and of UTF-8
        raise UsageError(f"the baseline {path} is corrupt: {error}", hint=mend) from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise UsageError(
            f"the baseline {path} has schema {schema}, this spa {__version__} knows {SCHEMA}",
            hint=f"the spa that wrote it: {document.get('versions', {}).get('spa', 'a newer one')}",
        )
    try:
        if schema != SCHEMA:
            raise _Wrong("schema", schema)
        known = _mapping(document.get("versions", {}), "versions")
        return Baseline(
            {key: _measured(key, row) for key, row in _mapping(document.get("models"), "models").items()},
            {str(k): str(v) for k, v in known.items()},
        )
    except _Wrong as wrong:
        raise UsageError(f"the baseline {path} is corrupt: {wrong}", hint=mend) from None


class _Wrong(Exception):
    def __init__(self, where: str, value: Any) -> None:
        super().__init__(f"{where} is {str(value)[:40]!r}")


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Wrong(where, value)
    return value


def _measured(key: str, row: Any) -> Measured:
    from spa.checking.metrics import Measured

    row = _mapping(row, key)
    metrics = _mapping(row.get("metrics"), f"{key}: metrics")
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _Wrong(f"{key}: {name}", value)
    if not isinstance(row.get("sha256"), str):
        raise _Wrong(f"{key}: sha256", row.get("sha256"))
    layers = _mapping(row.get("layers", {}), f"{key}: layers")
    return Measured(row["sha256"], metrics, tuple(_layer(f"{key}: {n}", n, layer) for n, layer in layers.items()))


def _layer(where: str, name: str, row: Any) -> Layer:
    from spa.checking.metrics import Layer

    row = _mapping(row, where)
    numbers = [row.get(k) for k in ("params", "macs", "bytes", "nonzero")]
    shape = row.get("shape")
    if (
        not all(type(n) is int for n in numbers)
        or not isinstance(shape, list)
        or not all(type(d) is int for d in shape)
    ):
        raise _Wrong(where, row)
    return Layer(name, str(row.get("op")), str(row.get("dtype")), tuple(shape), *numbers)


def differ(old: Baseline | None, new: Baseline) -> list[str]:
    """The models whose rows differ, that are new or gone."""
    rows = [{k: text_of(Baseline({k: m}, {})) for k, m in (b.models if b else {}).items()} for b in (old, new)]
    return sorted(k for k in rows[0].keys() | rows[1].keys() if rows[0].get(k) != rows[1].get(k))


def text_of(baseline: Baseline) -> str:
    """The file's text."""
    lines = ["{", f' "schema": {SCHEMA},', f' "versions": {_plain(baseline.versions)},', ' "models": {']
    models = sorted(baseline.models.items())
    for i, (key, measured) in enumerate(models):
        lines += [f"  {_plain(key)}: {{", f'   "sha256": {_plain(measured.sha256)},', '   "metrics": {']
        lines += _rows({k: _short(v) for k, v in sorted(measured.metrics.items())})
        lines += ["   },", '   "layers": {', *_rows(dict(named(measured.layers)))]
        lines += ["   }", "  }" + ("," if i + 1 < len(models) else "")]
    return "\n".join([*lines, " }", "}"]) + "\n"


def named(layers: tuple[Layer, ...]) -> list[tuple[str, dict[str, Any]]]:
    """Layers with names that are unique: the second of a name is `name#2`."""
    count: dict[str, int] = {}
    taken = {layer.name for layer in layers}
    found = []
    for layer in layers:
        name = layer.name
        count[name] = count.get(name, 0) + 1
        if count[name] > 1:
            while (name := f"{layer.name}#{count[layer.name]}") in taken:
                count[layer.name] += 1
            taken.add(name)
        found.append((name, layer.to_json()))
    return found


def _rows(table: Mapping[str, Any]) -> list[str]:
    rows = [f"    {_plain(k)}: {_plain(v)}" for k, v in table.items()]
    return [row + "," for row in rows[:-1]] + rows[-1:]


def _short(value: float) -> float:
    """Measured numbers to six digits, so that noise of the last ones is no diff."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _plain(value: Any) -> str:
    return json.dumps(dict(value) if isinstance(value, Mapping) else value, allow_nan=False)


def save(baseline: Baseline, path: Path) -> bool:
    """Write it, whole or not at all; an equal file is left alone. True where it was written."""
    from spa.model import write_atomic

    finite = {
        key: type(m)(m.sha256, {k: v for k, v in m.metrics.items() if math.isfinite(v)}, m.layers)
        for key, m in baseline.models.items()
    }
    data = text_of(Baseline(finite, baseline.versions)).encode()
    try:
        if path.exists() and path.read_bytes() == data:
            return False
        write_atomic(path, lambda place: place.write_bytes(data))
    except OSError as error:
        raise UsageError(
            f"the baseline {path} cannot be written: {error.strerror}", hint="another --baseline"
        ) from None
    return True
