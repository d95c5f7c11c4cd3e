"""The package's public names, which are imported when they are first used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mcp_hybrid


def modules_after(code: str) -> set[str]:
    """Run `code` in a fresh interpreter and give the names of the modules it has loaded."""
    program = f"{code}\nimport sys; print(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )


@pytest.mark.parametrize("name", mcp_hybrid.__all__)
def test_every_public_name_is_there_and_is_its_own(name: str) -> None:
    found = getattr(mcp_hybrid, name)
    assert found.__name__ == name
    assert name in dir(mcp_hybrid)
    assert getattr(mcp_hybrid, name) is found


def test_no_name_is_promised_but_missing_and_none_is_found_but_not_promised() -> None:
    assert set(vars(mcp_hybrid)["_HOMES"]) == set(mcp_hybrid.__all__)


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="'mcp_hybrid' has no attribute 'HybridApplication'"):
        _ = mcp_hybrid.HybridApplication  # type: ignore[attr-defined]  # that is the point
    with pytest.raises(ImportError, match="HybridApplication"):
        exec("from mcp_hybrid import HybridApplication")


@pytest.mark.process
def test_importing_the_package_loads_neither_the_sdk_nor_the_server() -> None:
    assert not {"mcp", "mcp_types", "hypercorn", "trio", "mcp_hybrid.app"} & modules_after("import mcp_hybrid")


@pytest.mark.process
@pytest.mark.parametrize("command", ["version", "session-key"])
def test_a_small_command_loads_neither_the_sdk_nor_the_server(command: str) -> None:
    code = f"from mcp_hybrid.cli import app\ntry:\n    app(['{command}'])\nexcept SystemExit:\n    pass"
    assert not {"mcp", "mcp_types", "hypercorn", "trio", "mcp_hybrid.app"} & modules_after(code)


@pytest.mark.process
def test_a_wrong_setting_is_told_without_loading_the_sdks_server() -> None:
    code = "from mcp_hybrid.cli import app\ntry:\n    app(['check', '--mode', 'x'])\nexcept SystemExit:\n    pass"
    assert not {"mcp.server", "hypercorn", "mcp_hybrid.app"} & modules_after(code)
