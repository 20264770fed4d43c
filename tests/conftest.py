"""Settings of the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent.parent

# Deterministic, and without a deadline: the first example pays for imports.
settings.register_profile("spa", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("spa")


@pytest.fixture
def models() -> Path:
    """The folder of the small trained networks."""
    return ROOT / "models"
