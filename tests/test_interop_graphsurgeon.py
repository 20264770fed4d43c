"""onnx-graphsurgeon: nothing is lost on the way there and back, and passes written against it run among ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_text import ops, parse
from test_prune_cli import call

import spa
from spa.errors import CheckFailed, MissingTool, UsageError
from spa.interop.graphsurgeon import from_graphsurgeon, surgery, to_graphsurgeon
from spa.model import Model
from spa.pipeline import PASSES, Pipeline, Result

gs = pytest.importorskip(
    "onnx_graphsurgeon", reason="onnx-graphsurgeon is not installed: pip install onnx-graphsurgeon"
)


def there_and_back(model: Model) -> Model:
    return from_graphsurgeon(to_graphsurgeon(model), model)


def sorted_(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Without the order of what has none."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    for graph in [copy.graph, *(a.g for n in copy.graph.node for a in n.attribute if a.HasField("g"))]:
        for field in (graph.initializer, graph.value_info):
            kept = sorted((type(v).FromString(v.SerializeToString()) for v in field), key=lambda v: v.name)
            del field[:]
            field.extend(kept)
    return copy


def outputs(proto: onnx.ModelProto, **feeds: Any) -> list[Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return list(ort.InferenceSession(proto.SerializeToString(), options).run(None, feeds))


def rich() -> onnx.ModelProto:
    """Everything that graphsurgeon's own export drops or changes."""
    proto = onnx.parser.parse_model("""
        <ir_version: 7, opset_import: ["" : 15, "local" : 1, "unused.domain" : 3], producer_name: "p", model_version: 9, domain: "d",
         doc_string: "documented", metadata_props: ["author": "someone"]>
        g (float[N,4] x, bool c, float[4] scale) => (float[N,4] y, float[N,K] z)
        <float[4] scale = {1,2,3,4}, float[1] lonely = {7}, float[N,4] h, int64[1] axes = {1}>
        {
          h = local.twice <k = 2.0> (x)
          s = Mul(h, scale)
          y = If (c) <then_branch = t () => (float[N,4] a) { b = Relu(s)  a = Neg(b) }, else_branch = e () => (float[N,4] a2) { a2 = Identity(s) }>
          z = ReduceSum <keepdims = 1> (s, axes)
        }
        <domain: "local", opset_import: ["" : 15]>
        twice <k> (v) => (w) { f = Constant <value_float: float = @k> ()  w = Mul(v, f) }
    """)
    proto.graph.doc_string = "the graph"
    proto.graph.metadata_props.add(key="scope", value="main")
    for node in proto.graph.node:
        node.name, node.doc_string = f"n_{node.output[0]}", f"makes {node.output[0]}"
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=node.output[0])
    proto.graph.quantization_annotation.add(tensor_name="h").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="scale"
    )
    proto.graph.value_info[0].doc_string = "in the middle"
    proto.graph.input[0].type.denotation = "TENSOR"
    proto.graph.initializer[0].doc_string = "per channel"
    return proto


# There and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "cancer"])
def test_our_networks_come_back_as_they_were(models: Path, name: str) -> None:
    model = spa.load(models / f"{name}.onnx")
    assert sorted_(there_and_back(model).to_proto()) == sorted_(model.to_proto())


def test_nothing_is_lost_that_graphsurgeon_does_not_know() -> None:
    proto = rich()
    model = spa.load(proto)
    back = there_and_back(model)
    assert sorted_(back.to_proto()) == sorted_(model.to_proto())
    plain = gs.export_onnx(gs.import_onnx(rich()))  # the test would be idle if the package lost nothing
    assert len(plain.graph.input) == 2 and not plain.metadata_props and not plain.graph.node[0].doc_string
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    for c in (True, False):
        for a, b in zip(outputs(proto, x=x, c=np.array(c)), outputs(back.to_proto(), x=x, c=np.array(c)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_types_of_values_and_tensors_survive() -> None:
    kinds = {
        "bf": (ml_dtypes.bfloat16, TensorProto.BFLOAT16),
        "f8": (ml_dtypes.float8_e4m3fn, TensorProto.FLOAT8E4M3FN),
        "f8z": (ml_dtypes.float8_e5m2fnuz, TensorProto.FLOAT8E5M2FNUZ),
        "i4": (ml_dtypes.int4, TensorProto.INT4),
        "h": (np.float16, TensorProto.FLOAT16),
    }
    tensors = [numpy_helper.from_array(np.array([1, 2, 3], np.float32).astype(d), n) for n, (d, _) in kinds.items()]
    tensors.append(helper.make_tensor("text", TensorProto.STRING, [2], [b"a", "ü".encode()]))
    nodes = [helper.make_node("Identity", [t.name], [f"{t.name}_out"]) for t in tensors]
    nodes += [helper.make_node("SequenceConstruct", ["x", "x"], ["seq"]), helper.make_node("Optional", ["x"], ["opt"])]
    outs = [helper.make_tensor_value_info(f"{t.name}_out", t.data_type, list(t.dims)) for t in tensors]
    outs.append(helper.make_tensor_sequence_value_info("seq", TensorProto.FLOAT, ["N"]))
    optional = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["N"]))
    outs.append(helper.make_value_info("opt", optional))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    graph = helper.make_graph(nodes, "kinds", [x], outs, tensors)
    model = spa.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    assert sorted_(there_and_back(model).to_proto()) == sorted_(model.to_proto())


def test_external_weights_stay_where_they_are(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = onnx.load(models / "digits.onnx")
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    monkeypatch.chdir(models)  # the data are not in the working directory
    model = spa.load(tmp_path / "m.onnx")
    graph = to_graphsurgeon(model)
    weights = [t for t in graph.tensors().values() if isinstance(t, gs.Constant)]
    changed = next(t for t in weights if len(t.shape) == 4)
    kept = {t.name for t in weights} - {changed.name}
    changed.values = changed.values * 2
    back = from_graphsurgeon(graph, model)
    import onnx_ir as ir

    still = {v.name for v in back.ir.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)}
    assert kept <= still and changed.name not in still
    back.save(tmp_path / "twice.onnx")
    found = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "twice.onnx").graph.initializer}
    for t in onnx.load(models / "digits.onnx").graph.initializer:  # `proto` was changed when it was saved
        factor = 2 if t.name == changed.name else 1
        np.testing.assert_array_equal(found[t.name], numpy_helper.to_array(t) * factor)


def test_without_the_network_it_came_from(models: Path) -> None:
    model = spa.load(models / "digits.onnx")
    alone = from_graphsurgeon(to_graphsurgeon(model))
    assert alone.source is None and ops(alone) == ops(model)


def test_the_networks_are_independent(models: Path) -> None:
    model = spa.load(models / "digits.onnx")
    before = model.to_proto().SerializeToString(deterministic=True)
    graph = to_graphsurgeon(model)
    for tensor in list(graph.tensors().values()):
        tensor.name = f"{tensor.name}_renamed"
        if isinstance(tensor, gs.Constant):
            tensor.values = tensor.values * 0
    assert model.to_proto().SerializeToString(deterministic=True) == before


# Passes ----------------------------------------------------------------------------------------------------------


@surgery
def bypass(graph: gs.Graph, *, op: str = "Identity", most: int | None = None) -> dict[str, int]:
    """Take nodes of one operator out of the way."""
    gone = 0
    for node in [n for n in graph.nodes if n.op == op][:most]:
        source, target = node.inputs[0], node.outputs[0]
        for reader in list(target.outputs):
            reader.inputs = [source if t is target else t for t in reader.inputs]
        gone += not any(target is o for o in graph.outputs)
    print("a note of the pass")
    graph.cleanup()
    return {"bypassed": gone}


@surgery(name="scaled", exact=True)
def scale_by(graph: gs.Graph, *, factor: float, mode: Literal["up", "down"] = "up") -> gs.Graph:
    """Every matrix times a factor."""
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Constant) and len(tensor.shape) > 1:
            tensor.values = (tensor.values * (factor if mode == "up" else 1 / factor)).astype(tensor.values.dtype)
    return graph


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PASSES, "bypass", f"{__name__}:bypass")
    monkeypatch.setitem(PASSES, "scaled", f"{__name__}:scale_by")


TEXT = "agraph (float[N,3] x) => (float[N,3] y) { a = Identity(x)  b = Relu(a)  c = Identity(b)  y = Neg(c) }"


@pytest.mark.usefixtures("registered")
def test_a_pass_runs_in_a_pipeline_with_options(capsys: pytest.CaptureFixture[str]) -> None:
    model = parse(TEXT)
    pipeline = Pipeline.parse("bypass{most=1},fold")
    assert str(pipeline) == "bypass{most=1},fold"
    assert str(Pipeline.parse("bypass{op=Identity,most=none}")) == "bypass"
    result = Pipeline.parse("bypass{most=1}").run(model)
    assert isinstance(result, Result) and result.facts == {"bypassed": 1}
    assert ops(result.model) == ["Relu", "Identity", "Neg"]
    assert ops(model) == ["Identity", "Relu", "Identity", "Neg"], "the input model was changed"
    x = np.array([[-1, 2, 3]], np.float32)
    np.testing.assert_array_equal(outputs(model.to_proto(), x=x)[0], outputs(result.model.to_proto(), x=x)[0])
    again = Pipeline.parse("bypass,bypass").run(model)
    assert ops(again.model) == ["Relu", "Neg"] and again.facts == {"bypassed": 0}
    assert capsys.readouterr().out == "", "stdout is for results"


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bypass{mots=1}", "did you mean 'most'?"),
        ("scaled", "needs factor"),
        ("scaled{factor=2,mode=sideways}", "no choice"),
    ],
)
def test_options_are_checked(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Pipeline.parse(text)
    assert words in str(caught.value)


@pytest.mark.usefixtures("registered")
def test_prune_runs_it_and_holds_it_to_its_promise(models: Path, tmp_path: Path) -> None:
    source = models / "digits.onnx"
    code, out, err = call(
        "prune", source, "-o", tmp_path / "run", "--pipeline", "fold,bypass,slice{ratio=0.25}", "--json"
    )
    assert code == 0, err
    document = json.loads(out)
    assert [row["pass"] for row in document["passes"]] == ["fold", "bypass", "slice{ratio=0.25}"]
    assert document["passes"][1] == {"pass": "bypass", "exact": False, "error": 0.0}
    assert document["verified"]["ok"] and (tmp_path / "run" / "plan.json").exists()
    code, _, err = call("prune", source, "-o", tmp_path / "o.onnx", "--pipeline", "scaled{factor=1.5}")
    assert code == 1 and "the pass scaled{factor=1.5} changes the network" in err


@pytest.mark.usefixtures("registered")
def test_what_a_pass_did_not_touch_is_as_it_was() -> None:
    proto = rich()
    model = spa.load(proto)
    result = Pipeline.parse("scaled{factor=2}").run(model).model
    assert sorted_(result.to_proto()) == sorted_(model.to_proto()), "there is no matrix in it"

    @surgery
    def negate(graph: gs.Graph) -> None:
        (node,) = [n for n in graph.nodes if n.op == "ReduceSum"]
        node.attrs["keepdims"] = 0

    changed = negate().run(model).model.to_proto()
    was, now = ({n.output[0]: n for n in p.graph.node} for p in (model.to_proto(), changed))
    assert was.keys() == now.keys()
    assert all(was[k] == now[k] for k in was.keys() - {"z"})
    assert now["z"].doc_string == "makes z" and now["z"].metadata_props == was["z"].metadata_props
    assert {a.name: a.i for a in now["z"].attribute} == {"keepdims": 0}
    assert changed.ir_version == 7 and len(changed.graph.input) == 3 and changed.graph.quantization_annotation


def test_an_invalid_graph_is_said() -> None:
    @surgery
    def broken(graph: gs.Graph) -> None:
        graph.nodes[0].inputs[0] = gs.Variable("nobody", np.float32)

    with pytest.raises(CheckFailed) as caught:
        broken().run(parse(TEXT))
    assert "nobody" in str(caught.value) and "never produced" in str(caught.value)


def test_options_without_a_type_are_refused() -> None:
    with pytest.raises(UsageError, match="no type"):
        surgery(lambda graph, factor=1: None)


def test_without_the_package_it_is_named(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx_graphsurgeon", None)
    with pytest.raises(MissingTool, match="onnx-graphsurgeon"):
        to_graphsurgeon(spa.load(models / "digits.onnx"))
