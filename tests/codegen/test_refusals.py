"""What cannot be compiled is refused before any work, and the message says what, where and what to try."""

from __future__ import annotations

import pytest
import zoo
from onnx import helper

from spa.codegen import tvm_api
from spa.codegen.bundle import compile
from spa.codegen.prepare import prepare
from spa.errors import MissingTool, SpaError, Unsupported, UsageError

pytestmark = pytest.mark.codegen

REFUSED = {
    "DeformConv": (
        """g (float[1,1,4,4] x, float[1,8,3,3] o) => (float[1,1,3,3] y) <float[1,1,2,2] w> { y = DeformConv(x, w, o) }""",
        "DeformConv",
    ),
    "foreign domain": ("g (float[4] x) => (float[4] y) { y = other.Relu(x) }", "other"),
    "dynamic input": ("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }", "--shape x:1,4"),
    "values decide the shape": ("g (float[4] x) => (int64[1,n] y) { y = NonZero(x) }", "NonZero"),
    "strings": ("g (string[4] x) => (string[4] y) { y = Identity(x) }", "string"),
    "bfloat16": ("g (bfloat16[4] x) => (bfloat16[4] y) { y = Identity(x) }", "bfloat16"),
    "loop": (
        """g (float[4] x, int64 n, bool c) => (float[4] y)
        { y = Loop(n, c, x) <body = b (int64 i, bool d, float[4] s) => (bool e, float[4] t)
          { e = Identity(d) t = Add(s, s) }> }""",
        "Loop",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    text, said = REFUSED[name]
    model = zoo.network(text, check=False)
    if name == "foreign domain":
        model.opset_import.append(helper.make_opsetid("other", 1))
    with pytest.raises(Unsupported) as caught:
        prepare(model, {}, tvm_api.imported_ops())
    assert said in str(caught.value)
    assert caught.value.exit_code == 3
    assert len(str(caught.value).splitlines()) <= 3


def test_a_shape_that_does_not_fit() -> None:
    model = zoo.network("g (float[N,4] x, float[N] s) => (float[N,4] y) { y = Relu(x) }")
    for shapes, said in (
        ({"z": (1,)}, "no input"),
        ({"x": (1, 5)}, "does not fit"),
        ({"x": (1, 4, 1)}, "does not fit"),
        ({"x": (2, 4), "s": (3,)}, "'N'"),
    ):
        with pytest.raises(UsageError, match=said):
            prepare(model, shapes, tvm_api.imported_ops())


def test_nothing_is_written_when_one_target_fails(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("out")
    with pytest.raises(SpaError):
        compile(zoo.network(REFUSED["DeformConv"][0], check=False), ["host", "wasm"], folder / "b")
    assert list(folder.iterdir()) == []


def test_missing_zig(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spa.runtime.toolchain.find", lambda tool: None)
    with pytest.raises(MissingTool, match="pip install ziglang") as caught:
        compile(zoo.network(zoo.CNN), "host", use_cache=False)
    assert caught.value.exit_code == 4


def test_unknown_target_and_level() -> None:
    with pytest.raises(UsageError, match="toaster"):
        compile(zoo.network(zoo.CNN), "toaster")
    with pytest.raises(UsageError, match="x86-64-v9"):
        compile(zoo.network(zoo.CNN), "host", host_level="x86-64-v9")
