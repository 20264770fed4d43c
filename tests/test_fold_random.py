"""`fold` on small random graphs: whatever the network, the numbers stay, and a second run changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_text import Array, ops, parse, run

from spa.model import Model
from spa.passes.fold import Fold


@dataclass
class Text:
    """A graph under construction. Every float value has shape [N, 4, T]; integer vectors are kept apart."""

    lines: list[str] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    floats: list[str] = field(default_factory=lambda: ["x"])
    count: int = 0

    def add(self, expression: str) -> str:
        self.count += 1
        self.lines.append(f"v{self.count} = {expression}")
        return f"v{self.count}"

    def weight(self, *shape: int, seed: int) -> str:
        self.count += 1
        array = np.random.default_rng(seed).uniform(0.3, 1.2, shape).astype(np.float32)
        self.weights[f"w{self.count}"] = array
        return f"w{self.count}"

    def ints(self, *values: int) -> str:
        return self.add(f"Constant<value_ints = [{', '.join(map(str, values))}]>()")


def unary(text: Text, x: str, seed: int) -> str:
    return text.add(f"{('Relu', 'Identity', 'Neg', 'Dropout', 'Sigmoid')[seed % 5]}({x})")


def binary(text: Text, x: str, seed: int) -> str:
    return text.add(f"{('Add', 'Mul', 'Sub')[seed % 3]}({x}, {text.floats[seed % len(text.floats)]})")


def with_constant(text: Text, x: str, seed: int) -> str:
    """An operand that is computed from constants."""
    a = text.weight(4, 1, seed=seed)
    b = text.add(f"{('Exp', 'Neg', 'Identity')[seed % 3]}({a})")
    c = text.add(f"Add({a}, {b})") if seed % 2 else b
    return text.add(f"Mul({x}, {c})")


def conv_norm(text: Text, x: str, seed: int) -> str:
    """Convolution and normalisation, grouped or not, with or without bias; sometimes the middle is used again."""
    group = (1, 2, 4)[seed % 3]
    bias = f", {text.weight(4, seed=seed)}" if seed % 2 else ""
    z = text.add(f"Conv<group = {group}, pads = [1, 1]>({x}, {text.weight(4, 4 // group, 3, seed=seed)}{bias})")
    if seed % 5 == 0:
        text.floats.append(z)
    parameters = ", ".join(text.weight(4, seed=seed + i) for i in range(4))
    return text.add(f"BatchNormalization({z}, {parameters})")


def there_and_back(text: Text, x: str, seed: int) -> str:
    """[N, 4, T] -> [N, 4T] or [N, 2, 2, T] -> [N, 4, T], the targets computed from the shape."""
    shape = text.add(f"Shape({text.floats[seed % len(text.floats)]})")
    n = text.add(f"Gather({shape}, {text.ints(0)})")
    middle = text.ints(-1) if seed % 2 else text.add(f"Concat<axis = 0>({text.ints(2, 2)}, {text.ints(-1)})")
    flat = text.add(f"Reshape({x}, {text.add(f'Concat<axis = 0>({n}, {middle})')})")
    back = text.add(f"Slice({shape}, {text.ints(0)}, {text.ints(2)})") if seed % 3 else text.ints(0, 4)
    return text.add(f"Reshape({flat}, {text.add(f'Concat<axis = 0>({back}, {text.ints(-1)})')})")


def scaled_by_size(text: Text, x: str, seed: int) -> str:
    """x / sqrt(a dimension): the channels are fixed, the others are not."""
    shape = text.add(f"Shape({x})")
    size = text.add(f"Gather({shape}, {text.ints(seed % 3)})")
    real = text.add(f"Cast<to = 1>({size})")
    root = text.add(f"Sqrt({real})")
    return text.add(f"Div({x}, {root})")


STEPS = (unary, binary, with_constant, conv_norm, there_and_back, scaled_by_size)


@st.composite
def networks(draw: st.DrawFn) -> Model:
    text = Text()
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=8)):
        seed = draw(st.integers(0, 59))
        operand = text.floats[-1 - seed % min(2, len(text.floats))]
        text.floats.append(step(text, operand, seed))
    outputs = [text.floats[-1], *draw(st.sets(st.sampled_from(text.floats[1:]), max_size=1))]
    named = ", ".join(f"float[N,4,T] {name}" for name in dict.fromkeys(outputs))
    return parse(f"agraph (float[N,4,T] x) => ({named}) {{ {'  '.join(text.lines)} }}", text.weights)


@settings(max_examples=150)
@given(networks())
def test_any_network_keeps_its_numbers(model: Model) -> None:
    folded = Fold().run(model).model
    assert [v.name for v in folded.ir.graph.outputs] == [v.name for v in model.ir.graph.outputs]
    for n, t in ((1, 1), (2, 5)):
        x = np.random.default_rng(n).standard_normal((n, 4, t)).astype(np.float32)
        for old, new in zip(run(model, {"x": x}), run(folded, {"x": x}), strict=True):
            assert old.shape == new.shape
            scale = float(np.abs(old[np.isfinite(old)]).max(initial=1))
            np.testing.assert_allclose(new, old, rtol=1e-3, atol=1e-5 * scale)
    again = Fold().run(folded).model
    first, second = (m.to_proto().SerializeToString(deterministic=True) for m in (folded, again))
    assert first == second


@pytest.mark.parametrize(
    ("step", "expected"),
    [(conv_norm, ["Conv"]), (there_and_back, ["Reshape", "Reshape"]), (with_constant, ["Mul"])],
)
def test_the_generator_makes_what_fold_can_fold(step: object, expected: list[str]) -> None:
    text = Text()
    last = step(text, "x", 1)  # type: ignore[operator]
    model = parse(f"agraph (float[N,4,T] x) => (float[N,4,T] {last}) {{ {'  '.join(text.lines)} }}", text.weights)
    assert ops(Fold().run(model).model) == expected
