"""A plan applied to a PyTorch module does what it does to the ONNX file."""

from __future__ import annotations

import importlib
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import onnxruntime

import spa
from spa.cli import cli
from spa.errors import CheckFailed, Unsupported, UsageError
from spa.model import Model
from spa.planning import Plan, from_masks

ROOT = Path(__file__).parent.parent

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

from torch import Tensor, nn  # noqa: E402
from torch_nets import (  # noqa: E402
    FOLDED,
    UNFOLDED,
    Convolutions,
    HandWritten,
    Recurrent,
    RootMeanSquare,
    Tied,
    Transformer,
    export,
    shaken,
)

import spa.interop.torch as interop  # noqa: E402


def results(module: nn.Module, example: tuple[Tensor, ...]) -> list[np.ndarray]:
    with torch.no_grad():
        found = module(*example)
    return [t.numpy() for t in (found if isinstance(found, tuple) else (found,))]


def assert_same(module: nn.Module, example: tuple[Tensor, ...], model: Model) -> None:
    """The module's outputs are those of the network, by onnxruntime without optimisations, to 1e-5."""
    proto = model.to_proto()
    feeds = dict(zip([i.name for i in proto.graph.input], (t.numpy() for t in example), strict=True))
    for mine, its in zip(results(module, example), onnxruntime(proto, feeds), strict=True):
        assert mine.shape == its.shape
        np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-5 * float(np.abs(its).max()))


def random_plan(model: Model, seed: int = 0, share: float = 0.4) -> Plan:
    """Channels drawn at random in every group, at least one of each kept."""
    rng = np.random.default_rng(seed)
    coupling = spa.analyze(model)
    masks = {g.id: rng.random(g.size) < share for g in coupling.groups}
    for mask in masks.values():
        mask[int(rng.integers(len(mask)))] = False
    from spa.allocate import spare

    spare(coupling, masks)
    return from_masks(coupling, masks)


CASES = [
    *((net, "unfolded " + way, UNFOLDED[way]) for net in (Convolutions, Recurrent, Transformer) for way in UNFOLDED),
    *((net, "folded " + way, FOLDED[way]) for net in (Recurrent, Transformer) for way in FOLDED),
    (RootMeanSquare, "as an operator", {"dynamo": True, "opset_version": 23}),
    (RootMeanSquare, "in pieces", {"dynamo": True, "optimize": False}),
    (Tied, "unfolded script", UNFOLDED["script"]),
]


@pytest.mark.parametrize(("net", "options"), [c[::2] for c in CASES], ids=[f"{c[0].__name__} {c[1]}" for c in CASES])
def test_the_cut_module_computes_what_the_cut_network_does(net, options) -> None:  # type: ignore[no-untyped-def]
    module = shaken(net())
    before = {n: t.clone() for n, t in module.state_dict().items()}
    model = export(module, net.example, **options)
    for plan in (spa.plan(model, ratio=0.4), spa.plan(model, ratio=0.7, criterion="l1")):
        small = interop.apply(plan, module, model=model)
        assert_same(small, net.example, spa.apply(model, plan).model)
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in module.parameters())
        assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())  # nothing was done to it


@settings(max_examples=8)
@given(seed=st.integers(0, 999), groups=st.sampled_from([1, 2, 4]), share=st.sampled_from([0.3, 0.8]))
def test_any_channels_of_any_grouping(seed: int, groups: int, share: float) -> None:
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=groups), nn.BatchNorm2d(8),
        nn.ConvTranspose2d(8, 4 * groups, 2, groups=groups), nn.ReLU(), nn.Conv2d(4 * groups, 2, 1),
    )  # fmt: skip
    example = (torch.randn(2, 3, 5, 5),)
    model = export(shaken(module, seed), example, **UNFOLDED["script"])
    plan = random_plan(model, seed, share)
    assert_same(interop.apply(plan, module, model=model), example, spa.apply(model, plan).model)


def test_before_training_when_many_tensors_are_equal() -> None:
    """Exporters store equal tensors once; all normalisations of a new network are equal."""
    torch.manual_seed(0)
    module = Convolutions().eval()
    model = export(module, Convolutions.example, **UNFOLDED["script"])
    plan = random_plan(model)
    small = interop.apply(plan, module, model=model)
    assert_same(small, Convolutions.example, spa.apply(model, plan).model)
    assert small.bn.num_features == small.stem.out_channels == small.depthwise.groups < 8


def test_after_more_training_and_by_names_alone() -> None:
    module = shaken(Convolutions())
    model = export(module, Convolutions.example, **UNFOLDED["dynamo"])
    plan = spa.plan(model, ratio=0.4)
    shaken(module, seed=1)
    trained = export(module, Convolutions.example, **UNFOLDED["dynamo"])
    expected = spa.apply(trained, plan).model
    assert_same(interop.apply(plan, module, model=model), Convolutions.example, expected)
    assert_same(interop.apply(plan, module, example=Convolutions.example), Convolutions.example, expected)


def test_renamed_tensors_are_found_while_the_numbers_are_equal() -> None:
    module = shaken(Transformer())
    model = export(module, Transformer.example, **FOLDED["script"])  # Linear weights become onnx::MatMul_...
    plan = spa.plan(model, ratio=0.4)
    assert not any(n.endswith("qkv.weight") for n in plan.removed)
    found = interop.names(model, module)
    shaken(module, seed=1)
    with pytest.raises(Unsupported, match="which no tensor of the module is") as error:
        interop.apply(plan, module, model=model)
    assert "onnx::MatMul" in str(error.value) and "names=" in str(error.value)
    with pytest.raises(Unsupported, match="model="):
        interop.apply(plan, module)
    expected = spa.apply(export(module, Transformer.example, **UNFOLDED["script"]), _renamed(plan, found)).model
    assert_same(interop.apply(plan, module, model=model, names=found), Transformer.example, expected)


def _renamed(plan: Plan, found: interop.Names) -> Plan:
    """The plan in terms of an export that kept the module's names."""
    back = {t.value: (n, t.axes) for n, t in found.items()}
    removed = {
        name: {str(axes.index(int(a))): index for a, index in plan.removed[value].items()}
        for value, (name, axes) in back.items()
        if value in plan.removed
    }
    return Plan(plan.model, removed, plan.groups)


@pytest.mark.parametrize("way", FOLDED)
@pytest.mark.parametrize("trained", [False, True])
def test_a_folded_normalisation_is_refused(way: str, trained: bool) -> None:
    torch.manual_seed(0)
    module = Convolutions().eval()
    if trained:
        shaken(module)
    model = export(module, Convolutions.example, **FOLDED[way])
    with pytest.raises(Unsupported, match=r"which no tensor of the module is|folded into a convolution") as error:
        interop.apply(spa.plan(model, ratio=0.4), module, model=model)
    assert "do_constant_folding=False" in error.value.hint


def test_a_state_dict_loses_the_same() -> None:
    module = shaken(Convolutions(persistent=True))
    model = export(module, Convolutions.example, **UNFOLDED["dynamo"])
    plan, state = spa.plan(model, ratio=0.4), module.state_dict()
    small = interop.apply(plan, module, model=model).state_dict()
    short = interop.apply(plan, state, model=model)
    assert short.keys() == small.keys() == state.keys()
    assert all(torch.equal(short[n], t) for n, t in small.items())
    assert any(short[n].shape != t.shape for n, t in module.state_dict().items())
    interop.apply(plan, state, model=model, inplace=True)
    assert all(torch.equal(state[n], t) for n, t in small.items())
    with pytest.raises(Unsupported, match="'factor'"):  # a buffer that state dicts leave out
        interop.apply(plan, shaken(Convolutions()).state_dict(), model=model)


def test_the_optimizer_goes_on_with_what_is_left() -> None:
    module = shaken(Convolutions())
    model = export(module, Convolutions.example, **UNFOLDED["dynamo"])
    plan = spa.plan(model, ratio=0.4)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        sum(t.square().mean() for t in module(*Convolutions.example)).backward()
        optimizer.step()

    step()
    moments = {n: optimizer.state[p]["exp_avg"].clone() for n, p in module.named_parameters()}
    full = {n: p.detach().clone() for n, p in module.named_parameters()}
    with pytest.raises(UsageError, match="optimizer"):
        interop.apply(plan, module, model=model, optimizer=optimizer)
    assert interop.apply(plan, module, model=model, optimizer=optimizer, inplace=True) is module
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in module.parameters()} == {id(p) for p in optimizer.state}
    for name, parameter in module.named_parameters():
        kept = [
            [i for i in range(n) if i not in set(plan.removed.get(name, {}).get(str(a), []))]
            for a, n in enumerate(full[name].shape)
        ]
        assert torch.equal(parameter, full[name][np.ix_(*kept)])
        assert torch.equal(optimizer.state[parameter]["exp_avg"], moments[name][np.ix_(*kept)])
        assert parameter.grad is not None and parameter.grad.shape == parameter.shape
    before = [p.detach().clone() for p in module.parameters()]
    step()
    moved = [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]
    assert moved == [bool(p.grad.any()) for p in module.parameters()] and any(moved)


def test_tied_weights_stay_tied() -> None:
    module = shaken(Tied())
    model = export(module, Tied.example, **UNFOLDED["dynamo"])
    small = interop.apply(spa.plan(model, ratio=0.5), module, model=model)
    assert small.head.weight is small.table.weight and small.table.embedding_dim < 8


def test_a_tie_that_the_export_broke_is_refused() -> None:
    """Folding stored the head's weight transposed: two constants, whose channels the plan takes for two groups."""
    module = shaken(Tied())
    model = export(module, Tied.example, **FOLDED["script"])
    with pytest.raises(Unsupported, match="are one tensor"):
        interop.apply(random_plan(model), module, model=model)


def test_a_module_that_computes_something_else_once_cut_is_refused() -> None:
    """A mean over fewer channels: the network's constants were adjusted, the module's code cannot be."""
    module = shaken(RootMeanSquare(HandWritten()))
    model = export(module, RootMeanSquare.example, **UNFOLDED["dynamo"])
    plan = spa.plan(model, ratio=0.4)
    assert plan.removed
    with pytest.raises(CheckFailed, match="differs from the masked one"):
        interop.apply(plan, module, model=model)
    assert interop.apply(plan, module, model=model, check=False) is not module


def test_a_size_written_into_forward_is_told() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).reshape(2, 4, 2, 3, 3).sum(2))

    module, example = shaken(Fixed()), (torch.randn(2, 3, 3, 3),)
    model = export(module, example, **UNFOLDED["script"])
    plan = spa.plan(model, ratio=0.5)
    assert plan.removed
    with pytest.raises(CheckFailed, match="does not run"):
        interop.apply(plan, module, model=model)


def test_packed_attention_of_torch_is_refused_with_its_reason() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.MultiheadAttention(12, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(x, x, x, need_weights=False)[0]

    module, example = shaken(Attention()), (torch.randn(2, 5, 12),)
    model = export(module, example, **UNFOLDED["script"])
    plan = random_plan(model)
    assert plan.removed
    with pytest.raises(Unsupported, match="MultiheadAttention"):
        interop.apply(plan, module, model=model)


def test_a_plan_for_another_architecture_is_refused() -> None:
    model = export(shaken(Recurrent()), Recurrent.example, **UNFOLDED["script"])
    plan = spa.plan(model, ratio=0.4)
    with pytest.raises(Unsupported):
        interop.apply(plan, shaken(Convolutions()))
    wide = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    narrow = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
    model = export(shaken(wide), (torch.randn(1, 3, 4, 4),), **UNFOLDED["script"])
    with pytest.raises(Unsupported):
        interop.apply(spa.plan(model, ratio=0.5), shaken(narrow), model=model)


def test_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "any_time.md").read_text("utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    names = {"__name__": "any_time"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter says that it is old
        exec(compile(code, "docs/any_time.md", "exec", dont_inherit=True), names)
    assert 0 < names["model"].inspect().macs < names["first"].inspect().macs / 2  # type: ignore[attr-defined]
    for command in re.findall(r"^    (spa prune .*)$", page, re.MULTILINE):
        names["first"].save("net.onnx", force=True)  # type: ignore[attr-defined]
        done = CliRunner().invoke(cli, command.split()[1:], catch_exceptions=False)
        assert done.exit_code == 0, done.output


def test_the_example_of_fine_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "finetune"))
    rows = importlib.import_module("finetune").main(["--macs", "0.4", "--steps", "2", "-o", str(tmp_path)])
    assert rows["dense"] > 0.9
    assert min(rows[name] for name in ("fine-tuned", "gradual", "soup")) > max(0.8, rows["pruned"])
    dense, gradual = (spa.load(tmp_path / f"{name}.onnx") for name in ("dense", "gradual"))
    replayed = spa.apply(dense, Plan.load(tmp_path / "gradual.json")).model
    shapes = [{n: tuple(v.shape) for n, v in m.ir.graph.initializers.items()} for m in (replayed, gradual)]
    assert shapes[0] == shapes[1]
