"""Reading and writing: what survives, what is refused and in which words, and that a failed write leaves nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_text import Array, parse, run

import spa
from spa import model as model_module
from spa.errors import ModelError, UsageError

RICH = """
<ir_version: 10, opset_import: ["" : 19, "local" : 1, "x.y" : 2], producer_name: "p", producer_version: "1",
 domain: "d", model_version: 7, doc_string: "doc", metadata_props: ["a" : "b"]>
agraph (float[N,3] x, bool c) => (float[N,3] y) <float[3] w = {1, 2, 3}, float[N,3] h> {
    h = local.f<k = 2.0>(x)
    y = If(c) <
        then_branch = g1 () => (float[N,3] t) <float[1] q = {2}> { t = Mul(h, q) },
        else_branch = g2 () => (float[N,3] e) { e = Add(h, w) }
    >
}
<domain: "local", opset_import: ["" : 19], doc_string: "fd">
f <k> (a) => (b) { kk = Constant<value_float: float = @k>()  b = Mul(a, kk) }
"""


def rich() -> onnx.ModelProto:
    """One of everything that ONNX can say about a network."""
    proto = onnx.parser.parse_model(RICH)
    proto.graph.doc_string = "graph"
    proto.graph.metadata_props.add(key="g", value="graph")
    proto.graph.node[0].metadata_props.add(key="n", value="node")
    proto.graph.node[0].doc_string = "node"
    proto.graph.initializer[0].doc_string = "tensor"
    proto.graph.input[0].doc_string = "input"
    proto.graph.quantization_annotation.add(tensor_name="w").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="w"
    )
    onnx.checker.check_model(proto)
    return proto


def mlp(width: int = 64) -> onnx.ModelProto:
    """Two layers whose weights are large enough to go into a file beside the model."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((8, width)).astype(np.float32),
        "w2": rng.standard_normal((width, 16)).astype(np.float32),
    }
    text = "agraph (float[N,8] x) => (float[N,16] y) { h = MatMul(x, w1)  r = Relu(h)  y = MatMul(r, w2) }"
    return parse(text, weights).to_proto()


X: dict[str, Array] = {"x": np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)}


def write(proto: onnx.ModelProto, path: Path, **options: Any) -> Path:
    onnx.save(proto, path, **options)
    return path


def external(proto: onnx.ModelProto, path: Path, one_file: bool = True) -> Path:
    return write(
        proto,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=one_file,
        location="m.data" if one_file else None,
        size_threshold=0,
    )


# What survives ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("through", ["message", "file", "clone"])
def test_everything_onnx_can_say_survives(through: str, tmp_path: Path) -> None:
    proto = rich()
    model = spa.load(proto)
    if through == "file":
        model = spa.load(model.save(tmp_path / "m.onnx"))
    if through == "clone":
        model = model.clone()
    got = model.to_proto()
    assert (got.ir_version, got.producer_name, got.producer_version) == (10, "p", "1")
    assert (got.domain, got.model_version, got.doc_string) == ("d", 7, "doc")
    assert {o.domain: o.version for o in got.opset_import} == {"": 19, "local": 1, "x.y": 2}
    assert got.metadata_props == proto.metadata_props
    assert got.graph.doc_string == "graph" and got.graph.metadata_props == proto.graph.metadata_props
    assert got.graph.node[0].doc_string == "node"
    assert got.graph.node[0].metadata_props == proto.graph.node[0].metadata_props
    assert got.graph.initializer == proto.graph.initializer
    assert got.graph.input == proto.graph.input and got.graph.output == proto.graph.output
    assert got.graph.quantization_annotation == proto.graph.quantization_annotation
    assert [f.name for f in got.functions] == ["f"] and got.functions[0].doc_string == "fd"
    assert got.functions[0].node[0].attribute == proto.functions[0].node[0].attribute
    branches = {a.name: a.g for a in got.graph.node[1].attribute}
    assert branches["then_branch"].initializer == proto.graph.node[1].attribute[0].g.initializer
    onnx.checker.check_model(got)


def test_loading_leaves_the_message_alone() -> None:
    proto = rich()
    sparse(proto.graph)
    before = proto.SerializeToString(deterministic=True)
    spa.load(proto)
    assert proto.SerializeToString(deterministic=True) == before


def test_a_clone_is_independent() -> None:
    model = spa.load(mlp())
    copy = model.clone()
    copy.ir.graph.initializers["w1"].const_value = ir.tensor(np.zeros((8, 64), np.float32), name="w1")
    copy.notes.append("changed")
    assert run(model, X)[0].any() and not run(copy, X)[0].any()
    assert model.notes == []


def test_names_and_digests(tmp_path: Path) -> None:
    path = write(mlp(), tmp_path / "net.onnx")
    model = spa.load(path)
    assert model.name == "net" and spa.load(mlp()).name == "agraph"
    assert model.sha256 == spa.load(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.sha256 != spa.load(rich()).sha256
    assert spa.load(mlp()).sha256 == spa.load(mlp()).sha256
    assert spa.load(model) is model


def test_training_info_is_noted() -> None:
    proto = mlp()
    proto.training_info.add().algorithm.name = "sgd"
    assert spa.load(proto).notes == ["training_info was dropped: spa works on networks for inference"]


# Sparse initializers ---------------------------------------------------------------------------------------------


def sparse(graph: onnx.GraphProto, flat: bool = True) -> None:
    """[[0, 5, 0], [0, 0, 7]] under the name 's'"""
    values = numpy_helper.from_array(np.array([5, 7], np.float32), "s")
    indices = np.array([1, 5], np.int64) if flat else np.array([[0, 1], [1, 2]], np.int64)
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, numpy_helper.from_array(indices, "i"), [2, 3]))


@pytest.mark.parametrize("flat", [True, False])
def test_sparse_initializers_become_dense(flat: bool) -> None:
    text = '<ir_version: 8, opset_import: ["" : 18]> agraph (float[2,3] x) => (float[2,3] y) { y = Add(x, s) }'
    proto = onnx.parser.parse_model(text)
    sparse(proto.graph, flat)
    model = spa.load(proto)
    assert model.notes == ["sparse initializer 's' (2 of 6 entries) was made dense"]
    np.testing.assert_array_equal(run(model, {"x": np.zeros((2, 3), np.float32)})[0], [[0, 5, 0], [0, 0, 7]])


def test_sparse_initializers_of_subgraphs_become_dense() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]> agraph (bool c, float[2,3] x) => (float[2,3] y) {
        y = If(c) < then_branch = g1 () => (float[2,3] t) { t = Add(x, s) },
                    else_branch = g2 () => (float[2,3] e) { e = Neg(x) } > }"""
    proto = onnx.parser.parse_model(text)
    sparse(proto.graph.node[0].attribute[0].g)
    model = spa.load(proto)
    feeds = {"c": np.array(True), "x": np.zeros((2, 3), np.float32)}
    np.testing.assert_array_equal(run(model, feeds)[0], [[0, 5, 0], [0, 0, 7]])


def test_a_sparse_index_out_of_range_is_an_error() -> None:
    proto = mlp()
    sparse(proto.graph)
    proto.graph.sparse_initializer[0].dims[:] = [1, 2]
    with pytest.raises(ModelError, match="the sparse initializer 's' is invalid"):
        spa.load(proto)


# External data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_file", [True, False])
def test_external_data_round_trip(one_file: bool, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    model = spa.load(external(mlp(), tmp_path / "in" / "m.onnx", one_file))
    out = model.save(tmp_path / "out" / "m.onnx")
    files = sorted(p.name for p in out.parent.iterdir())
    assert len(files) == 2 and files[0].startswith("m.") and files[0].endswith(".data")
    expected = run(spa.load(mlp()), X)[0]
    for m in (model, spa.load(out)):
        np.testing.assert_array_equal(run(m, X)[0], expected)
    onnx.checker.check_model(str(out))


def test_external_data_is_read_when_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original: Any = ir.ExternalTensor._load

    def note(tensor: ir.ExternalTensor) -> None:
        read.append(tensor.name)
        original(tensor)

    monkeypatch.setattr(ir.ExternalTensor, "_load", note)
    model = spa.load(external(mlp(), tmp_path / "m.onnx"))
    copy = model.clone()
    assert read == []
    value = copy.ir.graph.initializers["w1"].const_value
    assert value is not None and value.numpy().shape == (8, 64)
    assert read == ["w1"]


def test_small_tensors_stay_in_the_model_file(tmp_path: Path) -> None:
    out = spa.load(external(mlp(width=2), tmp_path / "m.onnx")).save(tmp_path / "out.onnx")
    tensors = onnx.load(out, load_external_data=False).graph.initializer
    assert all(t.data_location != TensorProto.EXTERNAL for t in tensors)


def test_a_model_over_the_limit_gets_a_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "PROTOBUF_LIMIT", 4096)
    out = spa.load(mlp()).save(tmp_path / "big.onnx")
    assert len(list(tmp_path.glob("big.*.data"))) == 1
    assert out.stat().st_size < 4096
    np.testing.assert_array_equal(run(spa.load(out), X)[0], run(spa.load(mlp()), X)[0])


def test_saving_over_the_source_keeps_it_whole(tmp_path: Path) -> None:
    path = external(mlp(), tmp_path / "m.onnx")
    model = spa.load(path)
    model.ir.graph.initializers["w1"].const_value = ir.tensor(np.ones((8, 64), np.float32), name="w1")
    model.save(path, force=True)
    got = spa.load(path)
    np.testing.assert_array_equal(got.ir.graph.initializers["w1"].const_value.numpy(), 1)  # type: ignore[union-attr]
    np.testing.assert_array_equal(
        got.ir.graph.initializers["w2"].const_value.numpy(),  # type: ignore[union-attr]
        numpy_helper.to_array(mlp().graph.initializer[1]),
    )


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = spa.load(external(mlp(), tmp_path / "m.onnx"))
    for folder in "ab":
        model.save(tmp_path / folder / "m.onnx")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def entry(path: Path, **changes: str) -> Path:
    """Change the external data record of the first weight."""
    proto = onnx.load(path, load_external_data=False)
    record = {e.key: e.value for e in proto.graph.initializer[0].external_data} | changes
    del proto.graph.initializer[0].external_data[:]
    for key, value in record.items():
        proto.graph.initializer[0].external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    return path


def link_outside(path: Path) -> None:
    (path.parent / "m.data").rename(path.parent.parent / "far.data")
    (path.parent / "m.data").symlink_to(path.parent.parent / "far.data")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: (p.parent / "m.data").unlink(), "external data file is missing: m.data"),
        (lambda p: (p.parent / "m.data").write_bytes(b"short"), "external data file is too short: m.data has 5 bytes"),
        (lambda p: entry(p, location="../m.data"), "external data outside the model's folder: ../m.data"),
        (lambda p: entry(p, location="/etc/passwd"), "external data outside the model's folder: /etc/passwd"),
        (link_outside, "external data outside the model's folder: m.data"),
        (lambda p: entry(p, length="12"), "external data of the wrong extent"),
        (lambda p: entry(p, offset="-4"), "external data of the wrong extent"),
        (lambda p: entry(p, offset="zero"), "external data of the wrong extent"),
        (lambda p: entry(p, offset="65536"), "external data file is too short"),
    ],
    ids=["missing", "truncated", "parent", "absolute", "link", "length", "negative", "no number", "beyond the end"],
)
def test_external_data_that_is_refused(spoil: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = external(mlp(), tmp_path / "in" / "m.onnx")
    spoil(path)
    with pytest.raises(ModelError) as caught:
        spa.load(path)
    assert caught.value.what.startswith(message)
    assert caught.value.where == f"{path}, tensor 'w1'"


# What is refused -------------------------------------------------------------------------------------------------


def spoiled(change: Callable[[onnx.ModelProto], object]) -> bytes:
    proto = mlp()
    change(proto)
    return bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file holds no ONNX graph"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is not a readable ONNX file (57 bytes)"),
        (b"<!DOCTYPE html><html>", "is not a readable ONNX file"),
        (mlp().SerializeToString()[:-500], "is not a readable ONNX file"),
        (spoiled(lambda p: p.ClearField("opset_import")), "the model names no operator set"),
        (spoiled(lambda p: p.graph.node.pop(0)), "the tensor 'h' is read but never produced"),
        (spoiled(lambda p: p.graph.node.pop(2)), "the graph output 'y' is never produced"),
        (
            spoiled(lambda p: p.graph.node[2].output.__setitem__(0, "r")),
            "the ONNX graph is invalid",
        ),
        (
            spoiled(lambda p: setattr(p.graph.initializer[0], "raw_data", b"1234")),
            "the tensor holds 4 bytes, its shape needs 2048",
        ),
    ],
    ids=["empty", "lfs", "html", "truncated", "no opset", "dangling", "no output", "assigned twice", "short tensor"],
)
def test_files_that_are_no_model(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        spa.load(path)
    assert message in caught.value.what
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3
    assert caught.value.exit_code == 2


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no such file: .*m\.onnx\n  try: check the path"):
        spa.load(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"try: name the \.onnx file in this folder"):
        spa.load(tmp_path)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(mlp(), tmp_path / "m.onnx")

    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(onnx, "load", refuse)
    with pytest.raises(ModelError, match="cannot be read: Permission denied"):
        spa.load(path)


# Writing ---------------------------------------------------------------------------------------------------------


def test_an_existing_file_needs_force(tmp_path: Path) -> None:
    path = write(mlp(), tmp_path / "m.onnx")
    before = path.read_bytes()
    model = spa.load(rich())
    with pytest.raises(UsageError, match="--force"):
        model.save(path)
    assert path.read_bytes() == before
    assert spa.load(model.save(path, force=True)).ir.producer_name == "p"


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        spa.load(mlp()).save(tmp_path, force=True)


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        spa.load(mlp()).save(tmp_path / "file" / "m.onnx")


@pytest.mark.parametrize("with_data", [True, False])
def test_a_failed_write_leaves_nothing(with_data: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = external(mlp(), tmp_path / "m.onnx") if with_data else write(mlp(), tmp_path / "m.onnx")
    model = spa.load(source)
    out = tmp_path / "out"
    out.mkdir()
    (out / "m.onnx").write_bytes(b"old")

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UsageError, match="No space left on device"):
        model.save(out / "m.onnx", force=True)
    assert [p.name for p in out.iterdir()] == ["m.onnx"]
    assert (out / "m.onnx").read_bytes() == b"old"


def test_missing_folders_are_made(tmp_path: Path) -> None:
    assert spa.load(mlp()).save(tmp_path / "a" / "b" / "m.onnx").is_file()


def test_to_proto_holds_all_weights(tmp_path: Path) -> None:
    proto = spa.load(external(mlp(), tmp_path / "m.onnx")).to_proto()
    assert all(t.data_location != TensorProto.EXTERNAL for t in proto.graph.initializer)
