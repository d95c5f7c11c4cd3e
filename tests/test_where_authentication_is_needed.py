"""Where a server may be without authentication, and which settings of it make no sense."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.guarded import Guarded, own, telling
from harness.issuer import AUDIENCE, ISSUER
from mcp_hybrid import ConfigurationError, HybridApp, Settings
from mcp_hybrid.authentication import is_loopback, require
from mcp_hybrid.cli import app as command_line


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.8.9.10", True), ("localhost", True), ("LocalHost", True), ("::1", True),
        ("[::1]", True), ("::ffff:127.0.0.1", True), ("0.0.0.0", False), ("::", False), ("192.168.1.5", False),
        ("10.0.0.1", False), ("::ffff:10.0.0.1", False), ("fe80::1%eth0", False), ("example.org", False),
        ("localhost.example.org", False), ("127.0.0.1.example.org", False),
    ],
)  # fmt: skip
def test_only_a_loopback_address_may_be_served_without_authentication(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    settings = Settings.model_validate({"server": {"host": host}})
    require(settings, authenticated=True)
    require(Settings.model_validate({"server": {"host": host}, "auth": {"allow_anonymous": True}}), authenticated=False)
    if loopback:
        require(settings, authenticated=False)
    else:
        with pytest.raises(ConfigurationError, match="--allow-anonymous"):
            require(settings, authenticated=False)


@pytest.mark.process
@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_does_not_start_without_authentication_where_others_can_come(workers: str) -> None:
    result = CliRunner().invoke(command_line, ["serve", "--host", "0.0.0.0", "--port", "0", "--workers", workers])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line == (
        "mcp-hybrid: server.host 0.0.0.0 can be reached from other machines, and no authentication is configured: "
        "set auth.api_keys or auth.issuer (docs/authentication.md), or say --allow-anonymous"
    )


@pytest.mark.parametrize(
    ("auth", "words"),
    [
        ({"allow_anonymous": True, "api_keys": "keys.toml"}, "drop one or the other"),
        ({"api_keys": "none.toml"}, "none.toml cannot be read"),
        ({"issuer": ISSUER, "audience": ["x"]}, r"auth\.issuer needs auth\.jwks"),
        ({"issuer": ISSUER, "jwks": "jwks.json"}, r"auth\.issuer needs auth\.audience"),
        ({"issuer": ISSUER, "jwks": "none.json", "audience": ["x"]}, r"none\.json cannot be read"),
        ({"jwks": "jwks.json"}, r"auth\.jwks is set without auth\.issuer"),
        ({"required_scopes": ["tools"]}, r"auth\.required_scopes is set, but nothing that verifies"),
        ({"audience": [AUDIENCE]}, r"auth\.audience is set, but nothing that verifies"),
    ],
)
def test_settings_that_do_not_fit_together_are_told(
    auth: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Guarded(tmp_path)
    with pytest.raises(ConfigurationError, match=words) as caught:
        HybridApp(telling(), Settings.model_validate({"auth": auth}))
    assert "\n" not in str(caught.value)


def test_anonymous_access_is_refused_beside_a_server_that_brings_its_own() -> None:
    with pytest.raises(ConfigurationError, match="the server's own verifier: drop one"):
        HybridApp(own(), Settings.model_validate({"auth": {"allow_anonymous": True}}))


def test_check_says_how_requests_are_authenticated_without_secrets(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path)
    variables = {
        "MCP_HYBRID_AUTH__API_KEYS": str(guarded.keys),
        "MCP_HYBRID_AUTH__ISSUER": ISSUER,
        "MCP_HYBRID_AUTH__AUDIENCE": AUDIENCE,
        "MCP_HYBRID_AUTH__JWKS": str(guarded.jwks),
    }
    result = CliRunner().invoke(command_line, ["check"], env=variables)
    assert result.exit_code == 0, result.output
    assert f"authentication: API keys (1 in {guarded.keys}) and JWTs of {ISSUER}" in result.stdout
    assert re.search(r"auth\.jwks +\S+jwks\.json +environment MCP_HYBRID_AUTH__JWKS", result.stdout)
    assert guarded.key.entry.split('sha256 = "')[1][:64] not in result.output
    assert "authentication: none" in CliRunner().invoke(command_line, ["check"]).stdout
