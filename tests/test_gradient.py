"""Criteria of the loss, held against finite differences of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_text import parse

import spa
from spa.errors import UsageError
from spa.importance.gradient import load
from spa.importance.scores import scores
from spa.importance.tensors import Statistics
from spa.model import Model

SHAPES = {"w0": (7, 5), "b0": (7,), "w1": (4, 7), "b1": (4,)}
STEP = 1e-5


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.standard_normal(s) for n, s in SHAPES.items()}


def network(given: dict[str, np.ndarray]) -> Model:
    text = """agraph (float[N,5] x) => (float[N,4] y) {
      a = Gemm<transB=1>(x, w0, b0)
      h = Tanh(a)
      y = Gemm<transB=1>(h, w1, b1)
    }"""
    return parse(text, {n: a.astype(np.float32) for n, a in given.items()})


def loss(w: dict[str, np.ndarray], x: np.ndarray, gate: np.ndarray | float = 1.0) -> float:
    """Half the mean square of the outputs; `gate` scales what the second layer reads."""
    hidden = np.tanh(x @ w["w0"].T + w["b0"]) * gate
    return float(0.5 * ((hidden @ w["w1"].T + w["b1"]) ** 2).sum(1).mean())


def slope(function: Any, size: int) -> np.ndarray:
    """Derivatives at zero along every unit vector, by central differences."""
    unit = np.eye(size) * STEP
    return np.array([(function(e) - function(-e)) / (2 * STEP) for e in unit])


def gradient(w: dict[str, np.ndarray], x: np.ndarray) -> dict[str, np.ndarray]:
    """By finite differences alone."""
    found = {}
    for name, array in w.items():

        def moved(e: np.ndarray, name: str = name, array: np.ndarray = array) -> float:
            return loss({**w, name: array + e.reshape(array.shape)}, x)

        found[name] = slope(moved, array.size).reshape(array.shape)
    return found


def test_taylor_is_the_squared_derivative_by_a_gate_on_the_channel() -> None:
    """Averaged over batches, not of their average: at an optimum the latter vanishes."""
    w, rng = weights(), np.random.default_rng(1)
    sets = [rng.standard_normal((16, 5)) for _ in range(3)]
    each = [gradient(w, x) for x in sets]
    model = network(w)
    coupling = spa.analyze(model)
    given = load({n: np.stack([g[n] for g in each]) for n in w}, coupling)
    (found,) = scores(coupling, "taylor", Statistics(gradients=given), normalise="none").values()
    by_gate = [slope(lambda e, x=x: loss(w, x, 1 + e), 7) for x in sets]
    np.testing.assert_allclose(found, np.mean(np.square(by_gate), 0), rtol=1e-3)
    # and so it tells to first order what removing a faint channel costs
    faint = {**w, "w1": w["w1"] * np.where(np.arange(7) == 3, 1e-3, 1.0)}
    cost = loss(faint, sets[0], np.where(np.arange(7) == 3, 0.0, 1.0)) - loss(faint, sets[0])
    one = load(gradient(faint, sets[0]), coupling)
    (score,) = scores(spa.analyze(network(faint)), "taylor", Statistics(gradients=one), normalise="none").values()
    assert score[3] == pytest.approx(cost**2, rel=0.02) and score.argmin() == 3


def test_snip_is_the_sum_of_connection_sensitivities() -> None:
    """|dL/dc| of a switch on every single weight (Lee et al., equation 4), summed over a channel's weights."""
    w, x = weights(2), np.random.default_rng(3).standard_normal((16, 5))
    switches = {}
    for name, array in w.items():

        def switched(e: np.ndarray, name: str = name, array: np.ndarray = array) -> float:
            return loss({**w, name: array * (1 + e.reshape(array.shape))}, x)

        switches[name] = np.abs(slope(switched, array.size)).reshape(array.shape)
    coupling = spa.analyze(network(w))
    given = load(gradient(w, x), coupling)
    (found,) = scores(coupling, "snip", Statistics(gradients=given), normalise="none").values()
    expected = switches["w0"].sum(1) + switches["b0"] + switches["w1"].sum(0)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_a_plan_by_gradients_removes_what_the_loss_does_not_feel(tmp_path: Path) -> None:
    w, x = weights(4), np.random.default_rng(5).standard_normal((16, 5))
    w["w1"][:, [1, 5]] *= 1e-3
    w["w0"][[1, 5]] *= 10  # large, and of no consequence
    model = network(w)
    np.savez(tmp_path / "g.npz", **gradient(w, x))
    for criterion in ("taylor", "snip"):
        plan = spa.plan(model, ratio=2 / 7, criterion=criterion, gradients=tmp_path / "g.npz")
        assert plan.removed["w0"] == {"0": [1, 5]}
    assert spa.plan(model, ratio=2 / 7, criterion="l2").removed["w0"] != {"0": [1, 5]}


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    model = network(weights())
    with pytest.raises(UsageError, match="gradients") as error:
        spa.plan(model, ratio=0.5, criterion="taylor")
    assert "--gradients" in error.value.hint
    for arrays, message in (
        ({"nothing": np.zeros(3)}, "no weight 'nothing'"),
        ({"w0": np.zeros((5, 7))}, r"shape \(5, 7\)"),
        ({}, "no gradient for the group"),
    ):
        with pytest.raises(UsageError, match=message):
            load(arrays, spa.analyze(model))
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="cannot read"):
        load(tmp_path / "bad.npz", spa.analyze(model))


def test_without_pytorch_it_is_named() -> None:
    code = "import sys; sys.modules['torch'] = None\ntry: import spa.interop.torch\nexcept Exception as e: print(type(e).__name__, e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingTool PyTorch is not installed") and "spa-onnx[torch]" in done.stdout


# From PyTorch ----------------------------------------------------------------------------------------------------


def small() -> tuple[Any, Any, Any]:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    torch.manual_seed(0)
    nn = torch.nn
    module = nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Tanh(), nn.Conv2d(6, 6, 1, groups=2), nn.Tanh(),
        nn.Flatten(), nn.Linear(6 * 4, 5), nn.Tanh(), nn.Linear(5, 3),
    )  # fmt: skip
    from torch_nets import shaken

    return torch, shaken(module.double()), torch.randn(3, 8, 2, 4, 4, dtype=torch.float64)


def squares(module: Any, x: Any) -> Any:
    return module(x).square().sum(1).mean() / 2


def scaled(torch: Any, module: Any, model: Model, group: Any, coupling: Any, channel: int, by: float) -> Any:
    """The state dict with everything of one channel multiplied; the names are those of the network."""
    state = {n: t.clone() for n, t in module.state_dict().items()}
    for dim, labels in group.labels.items():
        for value, axis in coupling.parameters.get(dim, ()):
            index = torch.from_numpy(np.flatnonzero(labels == channel))
            factor = torch.ones(state[value.name].shape[axis], dtype=torch.float64).index_fill(0, index, by)
            state[value.name] *= factor.reshape([-1 if a == axis else 1 for a in range(state[value.name].ndim)])
    return state


def test_gradients_and_their_products_with_the_hessian_from_pytorch() -> None:
    torch, module, x = small()
    from torch_nets import UNFOLDED, export

    import spa.interop.torch as interop

    model = export(module, (x[0],), **UNFOLDED["script"])
    coupling = spa.analyze(model)
    module.requires_grad_(True)
    batches = [(b,) for b in x]
    plain = interop.gradients(module, squares, batches, model=model)
    products = interop.gradients(module, squares, batches, model=model, products=True)
    assert all(p.grad is None for p in module.parameters())
    shapes = {n: tuple(p.shape) for n, p in module.named_parameters()}
    assert {n: a.shape for n, a in plain.items()} == {n: (3, *s) for n, s in shapes.items()}
    taylor = scores(coupling, "taylor", Statistics(gradients=plain), normalise="none")
    grasp = scores(coupling, "grasp", Statistics(gradients=products))

    def flow(state: Any, batch: Any) -> float:
        """Half the squared norm of the gradient, at other weights."""
        values = {n: t.clone().requires_grad_(n in shapes) for n, t in state.items()}
        value = torch.func.functional_call(module, values, (batch,)).square().sum(1).mean() / 2
        grads = torch.autograd.grad(value, [values[n] for n in shapes])
        return float(sum((g**2).sum() for g in grads) / 2)

    for group in coupling.groups:
        constant = [v.name for d in group.labels for v, _ in coupling.parameters.get(d, ()) if v.name not in shapes]
        for channel in range(min(3, group.size)):
            slopes = []
            for batch in x:
                up, down = (
                    flow(scaled(torch, module, model, group, coupling, channel, 1 + s), batch) for s in (1e-5, -1e-5)
                )
                slopes.append((up - down) / 2e-5)
            if not constant:  # a running mean is scaled here too, and has no gradient
                assert grasp[group.id][channel] == pytest.approx(np.mean(slopes), rel=1e-3, abs=1e-7)
    # the derivative by a gate on what the second linear layer reads, from its own input
    with torch.no_grad():
        hidden = [module[:8](b) for b in x]
    by_gate = []
    for h in hidden:
        gate = torch.ones(5, dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad(module[8](h * gate).square().sum(1).mean() / 2, gate)
        by_gate.append(found.numpy())
    last = next(g for g in coupling.groups if g.size == 5)
    np.testing.assert_allclose(taylor[last.id], np.mean(np.square(by_gate), 0), rtol=1e-4)


def test_gradients_arrive_in_the_layout_of_the_export() -> None:
    """Transposed, stacked and reordered as the exporter stored the weights: the products are those of the plain export."""
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    from torch_nets import FOLDED, UNFOLDED, Recurrent, Transformer, export, shaken

    import spa.interop.torch as interop

    for net in (Recurrent, Transformer):
        module = shaken(net())
        batches = [net.example]
        found = {}
        for name, options in (("folded", FOLDED["script"]), ("unfolded", UNFOLDED["script"])):
            model = export(module, net.example, **options)
            given = interop.gradients(module, lambda m, *x: m(*x).square().mean(), batches, model=model)
            coupling = spa.analyze(model)
            given = load(given, coupling)
            names = {v.name: v for v in coupling.constants}
            found[name] = sum(float((a[0] * names[n].const_value.numpy()).sum()) for n, a in given.items())
        assert found["folded"] == pytest.approx(found["unfolded"], rel=1e-4)
