"""What is told and refused on systems that these tests do not run on."""

from __future__ import annotations

import platform

import pytest

from spa.codegen.target import resolve
from spa.errors import Unsupported
from spa.runtime import toolchain


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """(system, machine) as the platform module would say them."""
    name, machine = request.param
    monkeypatch.setattr(platform, "system", lambda: name)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    return str(name)


MAC, INTEL_MAC, WINDOWS = ("Darwin", "arm64"), ("Darwin", "x86_64"), ("Windows", "AMD64")


@pytest.mark.parametrize("system", [MAC, INTEL_MAC, WINDOWS], indirect=True)
def test_every_tool_has_a_hint_for_this_system(system: str) -> None:
    hints = {tool: toolchain.install(tool) for tool in toolchain.INSTALL}
    assert all(hints.values()) and not any("apt-get" in hint for hint in hints.values())


@pytest.mark.parametrize("system", [INTEL_MAC], indirect=True)
def test_there_is_no_compiler_for_intel_macs(system: str) -> None:
    assert "Intel" in toolchain.install("tvm") and "pip install" in toolchain.install("zig")


@pytest.mark.parametrize("system", [WINDOWS], indirect=True)
def test_windows_has_no_host_but_wasm(system: str) -> None:
    with pytest.raises(Unsupported, match="Windows") as error:
        resolve("host")
    assert "wasm" in str(error.value)
    assert resolve("wasm").is_wasm and resolve("arm").name == "arm"
    assert not toolchain.runs_here("x86_64-linux-gnu", "")


@pytest.mark.parametrize("system", [MAC], indirect=True)
def test_a_mac_runs_its_own_libraries_and_no_others(system: str) -> None:
    host = resolve("host")
    assert (host.library, host.triple) == (".dylib", "arm64-apple-macos")
    assert toolchain.runs_here(host.triple, host.cpu)
    assert not toolchain.runs_here("aarch64-linux-gnu", "")
