"""Authentication over real sockets: `mcp-hybrid serve`, the SDK's own client, and an authorization server."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, chdir
from pathlib import Path

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from harness import mcp
from harness.clients import PATIENCE, Wire, call, following, on_trio_and_asyncio
from harness.issuer import Issuer, bearer, serving
from harness.login import Login, Memory, login_server, oauth
from harness.process import ServerProcess, command, hypercorn, program, run_to_its_end, serve
from mcp_hybrid.security import jwks

DOCUMENT = (Path(__file__).parent.parent / "docs" / "authentication.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    """Give a block of the document's code."""
    found = re.search(rf"<!-- \w+: {name} -->\n```\w+\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def environment(issuer: Issuer, jwks: str, audience: str) -> Mapping[str, str]:
    return {
        "MCP_HYBRID_AUTH__ISSUER": issuer.issuer,
        "MCP_HYBRID_AUTH__JWKS": jwks,
        "MCP_HYBRID_AUTH__AUDIENCE": audience,
        "MCP_HYBRID_AUTH__REQUIRED_SCOPES": "tools",
        "NO_PROXY": "127.0.0.1",
    }


def status(url: str, token: str | None = None) -> int:
    headers = dict([*mcp.headers(), *([bearer(token)] if token is not None else [])])
    return httpx2.post(url, headers=headers, json=mcp.request("ping"), timeout=20).status_code


@asynccontextmanager
async def logged_in(url: str, auth: httpx2.Auth, wire: Wire | None = None) -> AsyncIterator[Client]:
    """Connect the SDK's client, with a session, and authentication of its own."""
    timeout = httpx2.Timeout(PATIENCE, read=None)
    async with (
        httpx2.AsyncClient(transport=wire or Wire(), timeout=timeout, auth=auth) as http,
        Client(streamable_http_client(url, http_client=http), mode="legacy") as client,
    ):
        yield client


class Bearer(httpx2.Auth):
    """Sends a token that can be replaced."""

    def __init__(self, token: str) -> None:
        self.token = token

    def auth_flow(self, request: httpx2.Request) -> object:  # type: ignore[override]  # httpx2's is a generator type
        request.headers["authorization"] = f"Bearer {self.token}"
        yield request


def made_by_the_document(folder: Path) -> tuple[str, Path]:
    """Do what the document says, and give the key and the file that it is in."""
    (folder / "mcp-hybrid.toml").write_text(block("keys"), encoding="utf-8")
    line = shlex.split(block("key").splitlines()[0])
    with chdir(folder):
        made = run_to_its_end(*line)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip(), folder / "api-keys.toml"


def called(url: str, token: str) -> int:
    """Run `mcp-hybrid call` with a token, and give its exit code."""
    return run_to_its_end("mcp-hybrid", "call", url, "add", "a=1", "b=2", MCP_TOKEN=token).returncode


pytestmark = pytest.mark.process


# API keys


@on_trio_and_asyncio
async def test_the_commands_in_the_document_give_a_client_its_session_until_its_key_is_revoked(tmp_path: Path) -> None:
    key, keys = made_by_the_document(tmp_path)
    start = shlex.split(block("key").splitlines()[1])

    def argv(port: int) -> list[str]:
        return [*command(start[0]), *start[1:], "--port", str(port)]

    with ServerProcess(argv, cwd=tmp_path, forked=True) as server:
        assert status(server.url) == 401
        wire = Wire()
        async with logged_in(server.url, Bearer(key), wire) as client:
            assert await call(client, "add", a=1, b=2) == "3"
            async with following(client, "countdown", steps=3, delay=0.2) as counting:
                await counting.reported(1)
                await counting.finished()
        assert {one.route for one in wire.calls()} == {"session"}
        assert status(server.url, key) == 200
        for sent, code in ((key, 0), ("garbage", 1)):
            assert called(server.url, sent) == code
        os.truncate(keys, 0)
        until = time.monotonic() + 20
        while status(server.url, key) != 401:
            assert time.monotonic() < until, "a key that was revoked is still good"
        assert key not in server.log
        assert "mcp-hybrid/alice/api-key" in server.log


# JWTs


@on_trio_and_asyncio
async def test_a_session_lives_through_a_refreshed_token_and_rotated_keys(tmp_path: Path) -> None:
    issuer = Issuer(time.time())
    with serving(issuer) as keys, serve(env=environment(issuer, keys.url, "here")) as server:
        auth, wire = Bearer(issuer.token(aud="here")), Wire()
        async with logged_in(server.url, auth, wire) as client:
            assert await call(client, "add", a=1, b=2) == "3"
            old = auth.token
            issuer.rotate("second")
            auth.token = issuer.token(aud="here", jti="refreshed")
            assert await call(client, "add", a=2, b=2) == "4"
            auth.token = old  # withdrawn, and known to be since the keys were fetched again
            assert status(server.url, old) == 401
            auth.token = issuer.token(aud="here")
        assert {one.sent_session for one in wire.calls()} == {wire.session}
        assert keys.asked == 3  # at first, for the new key, and for the old one, which might have come back
        began = time.monotonic()
        for number in range(100):
            assert status(server.url, issuer.token(aud="here", headers={"kid": f"made-up-{number}"})) == 401
        assert keys.asked <= 3 + 1 + (time.monotonic() - began) / jwks.INTERVAL
        assert status(server.url, issuer.token(aud="elsewhere")) == 401
        assert status(server.url, issuer.token(aud="here", scope="")) == 403
        assert status(server.url) == 401


def test_several_workers_take_the_same_tokens_and_sessions_of_their_owner_only() -> None:
    issuer = Issuer(time.time())
    with serving(issuer) as keys, serve(None, "--workers", "2", env=environment(issuer, keys.url, "here")) as server:
        alice, bob = issuer.token(aud="here"), issuer.token(aud="here", sub="bob")

        def post(token: str | None, message: mcp.Json, session: str | None = None) -> httpx2.Response:
            headers = mcp.headers(session, mcp.LEGACY, *([bearer(token)] if token is not None else []))
            return httpx2.post(server.url, headers=headers, json=message, timeout=20)

        session = post(alice, mcp.initialize()).headers["mcp-session-id"]
        for _ in range(20):  # each on a connection of its own: some come to the one worker, some to the other
            assert post(alice, mcp.request("ping"), session).headers["mcp-hybrid-route"] == "session"
            assert post(bob, mcp.request("ping"), session).status_code == 404
            assert post(None, mcp.request("ping"), session).status_code == 401


def test_an_issuer_that_is_away_at_first_is_503_and_then_asked_again() -> None:
    issuer = Issuer(time.time())
    with serving(issuer) as keys, serve(env=environment(issuer, keys.url, "here")) as server:
        keys.status = 500
        assert status(server.url, issuer.token(aud="here")) == 503
        keys.status = 200
        assert status(server.url, issuer.token(aud="here")) == 200


# The whole way: an unmodified client that finds the login by itself


@on_trio_and_asyncio
async def test_the_sdks_client_finds_the_login_and_comes_back_with_a_token() -> None:
    login = Login(Issuer(time.time()))
    with login_server(login) as issuer_url:

        def argv(port: int) -> list[str]:
            audience = f"MCP_HYBRID_AUTH__AUDIENCE=http://127.0.0.1:{port}/mcp"
            return ["env", audience, *command("mcp-hybrid"), "serve", "--port", str(port)]

        with ServerProcess(argv, environment(login.issuer, f"{issuer_url}/jwks.json", "set above")) as server:
            memory, wire = Memory(), Wire()
            provider = oauth(server.url, memory)
            async with logged_in(server.url, provider, wire) as client:
                assert await call(client, "add", a=1, b=2) == "3"
                provider.context.token_expiry_time = 1  # long ago: it refreshes its token, and keeps its session
                assert await call(client, "add", a=2, b=2) == "4"
            assert wire.seen[0].status == 401
            assert {one.sent_session for one in wire.calls()} == {wire.session}
            assert {one.route for one in wire.calls()} == {"session"}
            assert (login.logins, login.refreshes, login.resources) == (1, 1, [server.url])
            assert memory.tokens is not None
            assert memory.tokens.scope == "tools"


# Servers that do not know their address


@pytest.mark.parametrize("silenced", [False, True])
def test_an_app_that_does_not_know_its_address_says_that_it_asks_nobody(silenced: bool) -> None:
    with hypercorn(env={"MCP_HYBRID_AUTH__ALLOW_ANONYMOUS": "true"} if silenced else {}) as server:
        assert status(server.url) == 200
    assert ("no authentication configured" in server.log) is not silenced


def test_serve_knows_its_address_and_says_nothing_on_loopback() -> None:
    with serve(None, "--workers", "2") as server:
        assert status(server.url) == 200
    assert "no authentication configured" not in server.log


def test_a_target_with_authentication_of_its_own_is_served_with_it() -> None:
    with serve(program("with_authentication")) as server:
        assert status(server.url) == 401
        assert status(server.url, "alice") == 200
