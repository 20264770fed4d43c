"""Settings of the whole suite."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent.parent
HEAVY = ("tvm", "ziglang", "wasmtime")  # what tests marked `codegen` need

# Deterministic, and without a deadline: the first example pays for imports.
settings.register_profile("spa", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("spa")

# What starts the suite in the background may have Ctrl-C ignored, which the processes that tests interrupt would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-docs", action="store_true", help="write what the commands of the documentation print now"
    )
    parser.addoption("--update-golden", action="store_true", help="write the code that kernels have now")


@pytest.fixture
def models() -> Path:
    """The folder of the small trained networks."""
    return ROOT / "models"


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing comes from the user's cache, and nothing gets into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPA_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [m for m in HEAVY if importlib.util.find_spec(m) is None]
    for item in items:
        if missing and item.get_closest_marker("codegen"):
            item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(missing)}"))
