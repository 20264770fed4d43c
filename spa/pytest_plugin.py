"""The fixture `spa_check` for pytest:

    def test_size(spa_check):
        spa_check()                                       # what spa.toml says
        spa_check("models/net.onnx", file_bytes="2MB")    # or one model, with more limits

It fails the test with the text of `spa check`: limits passed, layers at fault. `pytest --spa-update` accepts instead.
Nothing is imported before a test asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from spa.checking import Report


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("spa", "sizes of models")
    group.addoption("--spa-update", action="store_true", help="accept the sizes measured now as spa's baseline")


@pytest.fixture
def spa_check(pytestconfig: pytest.Config) -> Callable[..., Report]:
    """`spa_check(*models, config=..., baseline=..., **budgets)`: `spa.check`, from the folder of pytest's configuration."""

    def run(*models: Any, config: Any = None, baseline: Any = None, **budgets: Any) -> Report:
        __tracebackhide__ = True
        from spa.checking import check
        from spa.errors import SpaError

        update = bool(pytestconfig.getoption("--spa-update"))
        root = pytestconfig.rootpath
        try:
            report = check(
                [root / m for m in models],
                config=config and root / config,
                baseline=baseline and root / baseline,
                budgets=budgets,
                update=update,
                start=root,
            )
        except SpaError as error:
            pytest.fail(str(error), pytrace=False)
        if not report.ok:
            pytest.fail(str(report), pytrace=False)
        return report

    return run
