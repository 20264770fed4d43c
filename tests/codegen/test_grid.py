"""Codes that stand for floats exactly: whatever a symmetric quantiser gives is recognised, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spa.codegen.kernels.matvec.grid import on_grid


@given(
    bits=st.sampled_from([4, 8]),
    groups=st.integers(1, 4),
    size=st.integers(16, 40),
    m=st.integers(1, 20),
    kept=st.sampled_from([0.3, 1.0]),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_every_symmetric_grid_is_found(bits: int, groups: int, size: int, m: int, kept: float, seed: int) -> None:
    """Codes of the full range of two's complement, and scales that need not put the greatest value at its end."""
    random = np.random.default_rng(seed)
    top = 2 ** (bits - 1)
    codes = random.integers(-top, top, (groups, size, m)) * (random.random((groups, size, m)) < kept)
    scales = random.uniform(1e-4, 10, (groups, 1, m)).astype(np.float32)
    matrix = (codes.astype(np.float32) * scales).reshape(-1, m)
    found = on_grid(matrix)
    assert found is not None and found.bits <= bits and found.groups <= groups
    values = found.codes.reshape(found.groups, -1, m) * found.scales[:, None]
    np.testing.assert_allclose(values.reshape(-1, m), matrix, rtol=1e-6, atol=0)
    assert found.codes.min() >= -(2 ** (found.bits - 1)) and found.codes.max() < 2 ** (found.bits - 1)


@pytest.mark.parametrize("shape", [(64, 16), (33, 7), (4096, 3)])
def test_other_values_are_on_none(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    assert on_grid(random.standard_normal(shape).astype(np.float32)) is None
    matrix = np.round(random.standard_normal(shape) * 40).clip(-127, 127).astype(np.float32)
    assert on_grid(matrix) is not None
    matrix[1, 0] += np.float32(0.01)  # one value off by a hundredth of a step
    assert on_grid(matrix) is None


def test_zeros_are_on_every_grid() -> None:
    found = on_grid(np.zeros((20, 5), np.float32))
    assert found is not None and found.bits == 4 and not found.codes.any() and np.isfinite(found.scales).all()
