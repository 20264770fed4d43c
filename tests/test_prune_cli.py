"""spa prune from the outside: budgets, exit codes, JSON keys, plans that replay, and what is (not) written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from oracle_slice import assert_masked_equal, folder_state

import spa
import spa.cli
from spa.cost import inspect
from spa.errors import SpaError


@pytest.fixture
def digits(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(models / "digits.onnx", tmp_path / "digits.onnx"))


def call(*args: Any) -> tuple[int, str, str]:
    """Exit code, stdout and stderr, with our errors mapped as `spa.cli.main` does."""
    try:
        result = CliRunner().invoke(spa.cli.cli, [str(a) for a in args])
    except SpaError as error:
        return error.exit_code, "", str(error)
    if isinstance(result.exception, SpaError):
        return result.exception.exit_code, result.stdout, str(result.exception)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_prune_writes_a_model_equal_to_the_masked_one(digits: Path, tmp_path: Path) -> None:
    out, plan = tmp_path / "small.onnx", tmp_path / "plan.json"
    before = digits.read_bytes()
    code, stdout, _ = call("prune", digits, "-o", out, "--ratio", "0.5", "--plan", plan, "--no-fold", "--json")
    assert code == 0
    document = json.loads(stdout)
    assert {"schema", "input", "output", "before", "after", "nonzero", "verified", "drift", "groups"} <= document.keys()
    assert {"pruned_groups", "blocked", "targets", "seconds"} <= document.keys()
    assert document["verified"]["ok"] and document["after"]["params"] < 0.4 * document["before"]["params"]
    assert document["after"]["params"] == inspect(spa.load(out)).params
    removed = json.loads(plan.read_text())["removed"]
    assert_masked_equal(spa.load(digits), spa.load(out), removed)
    assert digits.read_bytes() == before


@pytest.mark.parametrize("share", [0.9, 0.5, 0.31])
@pytest.mark.parametrize("kind", ["macs", "params"])
def test_shares_are_met_within_two_percent(digits: Path, tmp_path: Path, kind: str, share: float) -> None:
    code, stdout, _ = call("prune", digits, "-o", tmp_path / "o.onnx", f"--{kind}", share, "--no-fold", "--json")
    document = json.loads(stdout)
    kept = document["after"][kind] / document["before"][kind]
    assert code == 0 and share - 0.02 <= kept <= share


def test_size_is_met_by_the_file(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    assert call("prune", digits, "-o", out, "--size", "90KB")[0] == 0
    assert 80_000 < out.stat().st_size <= 90_000


def test_default_budget_keeps_the_drift(digits: Path, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    code, stdout, _ = call("prune", digits, "-o", out, "--calib", models / "digits.npz", "--json")
    drift = json.loads(stdout)["drift"]
    assert code == 0 and drift["data"] == "given" and 0 <= drift["value"] <= drift["limit"] == 0.05
    loose = json.loads(call("prune", digits, "-n", "--calib", models / "digits.npz", "--max-drift", 0.5, "--json")[1])
    assert loose["after"]["params"] < json.loads(stdout)["after"]["params"]


def test_alignment_leaves_multiples(digits: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert call("prune", digits, "-n", "--ratio", "0.4", "--align", 8, "--plan", plan)[0] == 0
    assert not plan.exists()  # a dry run writes nothing
    assert call("prune", digits, "-o", tmp_path / "o.onnx", "--ratio", "0.4", "--align", 8, "--plan", plan)[0] == 0
    for group in json.loads(plan.read_text())["groups"]:
        assert (group["size"] - len(group["removed"])) % 8 == 0


def test_keep_spares_groups_and_refuses_unknown_names(digits: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert call("prune", digits, "-o", tmp_path / "o.onnx", "--ratio", "0.5", "--keep", "stem*", "--plan", plan)[0] == 0
    for group in json.loads(plan.read_text())["groups"]:
        assert bool(group["removed"]) != group["id"].startswith("stem")
    code, _, message = call("prune", digits, "-n", "--ratio", "0.5", "--keep", "nobody*")
    assert code == 2 and "nobody*" in message
    code, shown, _ = call("prune", digits, "-o", tmp_path / "same.onnx", "--ratio", "0.5", "--keep", "*", "--json")
    assert code == 0 and json.loads(shown)["pruned_groups"] == 0  # nothing may go: written as it is


def test_a_plan_replays_to_the_same_bytes_and_on_retrained_weights(digits: Path, tmp_path: Path) -> None:
    plan, first, again, retrained = (tmp_path / n for n in ("plan.json", "a.onnx", "b.onnx", "retrained.onnx"))
    assert call("prune", digits, "-o", first, "--macs", "0.5", "--plan", plan)[0] == 0
    assert call("prune", digits, "-o", again, "--apply-plan", plan)[0] == 0
    assert first.read_bytes() == again.read_bytes()
    proto = onnx.load(digits)
    rng = np.random.default_rng(0)
    for t in proto.graph.initializer:
        a = onnx.numpy_helper.to_array(t)
        if a.dtype == np.float32:
            t.CopyFrom(onnx.numpy_helper.from_array((a * rng.uniform(0.5, 1.5, a.shape)).astype(np.float32), t.name))
    onnx.save(proto, retrained)
    out = tmp_path / "c.onnx"
    assert call("prune", retrained, "-o", out, "--apply-plan", plan, "--no-fold")[0] == 0
    assert_masked_equal(spa.load(retrained), spa.load(out), json.loads(plan.read_text())["removed"])


def test_a_plan_of_another_network_is_refused(digits: Path, models: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert call("prune", digits, "-o", tmp_path / "a.onnx", "--ratio", "0.5", "--plan", plan)[0] == 0
    code, _, message = call("prune", models / "cancer.onnx", "-n", "--apply-plan", plan)
    assert code == 2 and "does not have" in message
    data = json.loads(plan.read_text())
    name = next(iter(data["removed"]))
    axis = next(iter(data["removed"][name]))
    data["removed"][name][axis].pop()  # no longer a whole channel
    plan.write_text(json.dumps(data))
    code, _, message = call("prune", digits, "-n", "--apply-plan", plan)
    assert code == 2 and "coupled channels" in message


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--ratio", "1.5"], 2, "not a share"),
        (["--macs", "0"], 2, "not a share"),
        (["--macs", "0.0001"], 1, "cannot be met"),
        (["--size", "3 parsecs"], 2, "not a size"),
        (["--ratio", "0.5", "--macs", "0.5"], 2, ""),
        (["--ratio", "0.5", "--shape", "nope:1,2"], 2, "no input 'nope'"),
        (["--apply-plan", "missing.json"], 2, "cannot read the plan"),
        (["--ratio", "0.5", "--inputs", "missing.npz"], 2, "cannot read the inputs"),
    ],
)
def test_bad_calls_say_why_and_write_nothing(
    digits: Path, tmp_path: Path, args: list[str], code: int, words: str
) -> None:
    before = folder_state(tmp_path)
    got, _, message = call("prune", digits, "-o", tmp_path / "o.onnx", *args)
    assert got == code and words in message
    assert folder_state(tmp_path) == before


def test_existing_output_and_the_input_are_safe(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    out.write_text("mine")
    code, _, message = call("prune", digits, "-o", out, "--ratio", "0.5")
    assert code == 2 and "--force" in message and out.read_text() == "mine"
    assert call("prune", digits, "-o", digits, "--ratio", "0.5", "--force")[0] == 2
    assert call("prune", digits, "-o", out, "--ratio", "0.5", "--force")[0] == 0 and out.stat().st_size > 1000


def test_nothing_to_remove_is_written_with_reasons(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 18]>
    agraph (float[1,4] x) => (float[1,4] y) <float[4,4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}> { y = Gemm(x, w) }""")
    source = tmp_path / "m.onnx"
    onnx.save(proto, source)
    code, stdout, _ = call("prune", source, "--ratio", "0.5", "--json")
    document = json.loads(stdout)
    assert code == 0 and (tmp_path / "m.pruned.onnx").exists()
    assert document["pruned_groups"] == 0 and {b["reason"] for b in document["blocked"]} == {
        "input 'x' of the network",
        "output 'y' of the network",
    }


def test_a_wrong_rule_is_caught_and_nothing_is_written(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sabotage: a slice that takes another channel than the plan says. Exit 1, the node at fault, no file."""
    import spa.pruning as pruning
    from spa.passes.slice import slice_channels

    def crooked(coupling: Any, gone: Any) -> Any:
        return slice_channels(coupling, {d: np.roll(m, 1) for d, m in gone.items()})

    monkeypatch.setattr(pruning, "slice_channels", crooked)
    before = folder_state(tmp_path)
    code, _, message = call("prune", digits, "-o", tmp_path / "o.onnx", "--ratio", "0.5", "--plan", tmp_path / "p.json")
    assert code == 1 and "differs from the masked one" in message and "node '" in message
    assert folder_state(tmp_path) == before


def test_verify_and_diff(digits: Path, tmp_path: Path) -> None:
    out, plan = tmp_path / "o.onnx", tmp_path / "plan.json"
    assert call("prune", digits, "-o", out, "--ratio", "0.5", "--plan", plan)[0] == 0
    assert call("verify", digits, out, "--plan", plan)[0] == 0
    code, stdout, _ = call("verify", digits, out, "--json")
    assert code == 1 and json.loads(stdout)["ok"] is False
    rows = json.loads(call("diff", digits, out, "--json")[1])
    assert rows["totals"]["params"][1] < rows["totals"]["params"][0] and rows["layers"]


def test_inspect_and_explain(digits: Path) -> None:
    document = json.loads(call("inspect", digits, "--json")[1])
    assert {"schema", "params", "macs", "bytes", "peak_activation_bytes", "layers", "groups"} <= document.keys()
    proto = onnx.load(digits)
    floats = [t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert document["params"] == sum(int(np.prod(t.dims)) for t in floats)
    assert document["macs"] == sum(layer["macs"] for layer in document["layers"])
    text = call("explain", digits, "stem.0.weight")[1]
    assert "32 channels" in text and "stem.0.weight axis 0" in text
    assert call("explain", digits, "nobody")[0] == 2


def test_same_options_same_bytes(digits: Path, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        assert (
            call("prune", digits, "-o", tmp_path / name, "--macs", "0.5", "--plan", tmp_path / f"{name}.json")[0] == 0
        )
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert (tmp_path / "a.onnx.json").read_bytes() == (tmp_path / "b.onnx.json").read_bytes()


def test_outputs_behind_a_ranking_of_equal_scores_do_not_hide_or_fake_a_difference(tmp_path: Path) -> None:
    """All scores are equal up to rounding, so TopK's order proves nothing; what it ranks must still agree."""
    from spa.verification import verify

    rng = np.random.default_rng(0)
    w0 = rng.standard_normal((16, 24)).astype(np.float32)
    w1 = np.tile(rng.standard_normal((24, 1)).astype(np.float32), (1, 40)) * (
        1 + 1e-8 * np.arange(40, dtype=np.float32)
    )
    text = """<ir_version: 8, opset_import: ["" : 18]>
    agraph (float[1,16] x) => (float[1,5] v, int64[1,5] i) {
      a = MatMul(x, w0)
      r = Sigmoid(a)
      s = MatMul(r, w1)
      k = Constant<value_ints=[5]>()
      v, i = TopK(s, k)
    }"""

    def network(scores: np.ndarray) -> spa.Model:
        proto = onnx.parser.parse_model(text)
        tensors = {"w0": w0, "w1": np.ascontiguousarray(scores.astype(np.float32))}
        proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in tensors.items())
        return spa.load(onnx.shape_inference.infer_shapes(proto))

    shuffled = w1[:, ::-1]  # the same scores but for the last digit, ranked otherwise
    assert verify(network(w1), network(shuffled)).ok
    assert not verify(network(w1), network(1.5 * w1)).ok


def chaotic(path: Path, layers: int = 24, width: int = 320, gain: float = 3.5) -> Path:
    """Sines of products: each layer stretches differences by about its gain, so rounding grows to the size of the output."""
    rng = np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(
            (gain / width**0.5 * rng.standard_normal((width, width))).astype(np.float32), f"w{i}"
        )
        for i in range(layers)
    ]
    nodes = []
    for i in range(layers):
        nodes += [
            onnx.helper.make_node("MatMul", [f"s{i}", f"w{i}"], [f"m{i}"], name=f"mul{i}"),
            onnx.helper.make_node("Sin", [f"m{i}"], [f"s{i + 1}"], name=f"sin{i}"),
        ]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [info("s0", 1, [4, width])], [info(f"s{layers}", 1, [4, width])], weights
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def test_a_network_that_amplifies_rounding_is_proven_on_calmer_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import spa.pruning as pruning
    from spa.passes.slice import slice_channels
    from spa.verification import CHAOTIC, verify

    source = chaotic(tmp_path / "chaos.onnx")
    model = spa.load(source)
    plan = spa.plan(model, ratio=0.3)
    assert verify(model, spa.apply(model, plan).model, plan).where == CHAOTIC
    assert call("prune", source, "-o", tmp_path / "a.onnx", "--ratio", "0.3")[0] == 0

    def crooked(coupling: Any, gone: Any) -> Any:
        return slice_channels(coupling, {d: np.roll(m, 1) for d, m in gone.items()})

    monkeypatch.setattr(pruning, "slice_channels", crooked)
    code, _, message = call("prune", source, "-o", tmp_path / "b.onnx", "--ratio", "0.3")
    assert code == 1 and "differs from the masked one" in message and not (tmp_path / "b.onnx").exists()
