"""The ES module and its type declarations beside a .wasm file; with threads, what their workers run."""

from __future__ import annotations

import json
from string import Template

from spa._version import __version__
from spa.codegen.link import TEMPLATES, Glue
from spa.codegen.program import Tensor

IMPORTS, MEMORY = 2, 2  # of a module: a section's number, a kind of import
# dtype -> typed array; bool as bytes, float16 as its bits (engines without Float16Array are still common)
ARRAYS = {
    "float32": "Float32Array",
    "float64": "Float64Array",
    "float16": "Uint16Array",
    "int8": "Int8Array",
    "uint8": "Uint8Array",
    "bool": "Uint8Array",
    "int16": "Int16Array",
    "uint16": "Uint16Array",
    "int32": "Int32Array",
    "uint32": "Uint32Array",
    "int64": "BigInt64Array",
    "uint64": "BigUint64Array",
}


def generate(
    name: str, title: str, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], glue: Glue, module: bytes
) -> dict[str, bytes]:
    """`<name>.mjs` and `<name>.d.ts`; for a module with shared memory `<name>.worker.mjs` too."""

    def rows(tensors: tuple[Tensor, ...]) -> str:
        lines = [json.dumps({**t.to_json(), "bytes": t.nbytes}) for t in tensors]
        return "".join(f"  Object.freeze({line}),\n" for line in lines)

    def fields(tensors: tuple[Tensor, ...], readonly: bool) -> str:
        mark = "readonly " if readonly else ""
        return "".join(
            f"  /** {t.dtype} {list(t.shape)} */\n  {mark}{json.dumps(t.name)}: {ARRAYS[t.dtype]};\n" for t in tensors
        )

    used = sorted({t.dtype for t in (*inputs, *outputs)})
    substitutions = {
        "name": name,
        "title": json.dumps(title)[1:-1].replace("*/", "* /"),
        "version": __version__,
        "inputs": rows(inputs),
        "outputs": rows(outputs),
        "arrays": ", ".join(f"{d}: {ARRAYS[d]}" for d in used),
        "input_fields": fields(inputs, True),
        "output_fields": fields(outputs, False),
        "instance_bytes": glue.instance_bytes,
        "own_bytes": glue.own_bytes,
        "pages": shared_pages(module),
    }
    files = {f"{name}.mjs": "model.mjs", f"{name}.d.ts": "model.d.ts"}
    files |= {f"{name}.worker.mjs": "worker.mjs"} if substitutions["pages"] else {}
    folder = TEMPLATES / "wasm"
    return {
        name: Template((folder / file).read_text()).substitute(substitutions).encode() for name, file in files.items()
    }


def shared_pages(module: bytes) -> int:
    """Pages of 64 KiB that a module wants its imported memory to begin with; 0 for a module with memory of its own.

    >>> shared_pages(bytes.fromhex("0061736d01000000" "020f01" "03656e76" "066d656d6f7279" "020303ffff03"))
    3
    """
    at = 8  # behind magic and version; then sections: kind, bytes, content
    while at < len(module):
        kind, (size, begin) = module[at], _leb128(module, at + 1)
        if kind == IMPORTS:
            count, place = _leb128(module, begin)
            assert count == 1, "a module imports its memory or nothing"
            for _ in ("env", "memory"):
                length, place = _leb128(module, place)
                place += length
            assert module[place] == MEMORY
            return _leb128(module, place + 2)[0]  # behind the kind and the flags
        at = begin + size
    return 0


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned number, and where the next one is."""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        if data[at] < 0x80:
            return value, at + 1
        at, shift = at + 1, shift + 7
