"""The ES module and its type declarations beside a .wasm file."""

from __future__ import annotations

import json
from string import Template

from spa._version import __version__
from spa.codegen.link import TEMPLATES
from spa.codegen.program import Tensor

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


def generate(name: str, title: str, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> dict[str, bytes]:
    """`<name>.mjs` and `<name>.d.ts`."""

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
    }
    folder = TEMPLATES / "wasm"
    return {
        f"{name}.{end}": Template((folder / f"model.{end}").read_text()).substitute(substitutions).encode()
        for end in ("mjs", "d.ts")
    }
