"""Verifiers that users write, authentication that servers bring along, and the rule about where it may be missing."""

from __future__ import annotations

import json
import re
import time
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import fastmcp
import httpx2
import pytest
from fastmcp.server.auth import RemoteAuthProvider
from fastmcp.server.auth.providers.jwt import StaticTokenVerifier
from fastmcp.server.dependencies import get_access_token as fastmcp_access_token
from mcp.server.auth.middleware.auth_context import AuthContextMiddleware, auth_context_var
from mcp.server.auth.middleware.bearer_auth import BearerAuthBackend
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from pydantic import AnyHttpUrl
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.routing import Mount

from harness import mcp
from harness.asgi import AsgiClient
from harness.guarded import Guarded, Opaque, ask, opened, own, person, telling, text
from harness.hybrid import NOW, running
from harness.issuer import ISSUER, Issuer, answer, bearer, http_server
from harness.login import SCOPES, Login, Memory, oauth
from mcp_hybrid import HybridApp, Settings, VerifierUnavailableError
from mcp_hybrid.security.bearer import TOKEN_LIMIT

DOCUMENT = (Path(__file__).parent.parent / "docs" / "authentication.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"<!-- \w+: (?P<name>\w+) -->\n```\w+\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = {found["name"]: found["text"] for found in BLOCK.finditer(DOCUMENT)}
WELL_KNOWN = "/.well-known/oauth-protected-resource"


# Verifiers of one's own


async def test_a_verifier_of_ones_own_is_a_few_lines() -> None:
    async with running(token_verifier=Opaque()) as setup:
        assert (await ask(setup.client)).status == 401
        assert (await ask(setup.client, bearer("carol"))).status == 401
        talk = await opened(setup.client, bearer("alice"))
        assert (await talk.post(mcp.request("ping"))).status == 200
        assert (await person(setup.client, talk.session, bearer("bob")).post(mcp.request("ping"))).status == 404


async def test_a_verifier_counts_beside_what_the_settings_say(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path)
    async with guarded.running(token_verifier=Opaque()) as setup:
        for credential in (bearer("alice"), bearer(guarded.key.key), guarded.token()):
            assert (await ask(setup.client, credential)).status == 200
        assert (await ask(setup.client, bearer("carol"))).status == 401


async def test_a_verifier_that_cannot_tell_is_503_and_one_that_fails_lets_nobody_in() -> None:
    async with running(token_verifier=Opaque(VerifierUnavailableError("away", retry_after=7))) as setup:
        refused = await ask(setup.client, bearer("alice"))
        assert (refused.status, refused.header("retry-after")) == (503, "7")
        assert b"away" not in refused.body
    async with running(token_verifier=Opaque(RuntimeError("a secret of the verifier's"))) as setup:
        refused = await ask(setup.client, bearer("alice"))
        assert refused.status == 500
        assert b"secret" not in refused.body
        assert setup.example.started == []


async def test_a_token_that_its_verifier_says_has_expired_is_refused() -> None:
    async with running(token_verifier=Opaque(expires_at=1)) as setup:
        assert (await ask(setup.client, bearer("alice"))).status == 401


async def test_what_is_too_long_to_be_a_token_is_not_even_looked_at() -> None:
    class Greedy:
        async def verify_token(self, token: str) -> AccessToken | None:
            return AccessToken(token=token, client_id="c", scopes=[])

    async with running(token_verifier=Greedy()) as setup:
        assert (await ask(setup.client, bearer("a" * (TOKEN_LIMIT - 7)))).status == 200
        assert (await ask(setup.client, bearer("a" * TOKEN_LIMIT))).status == 401


# What the document says


@pytest.fixture
def introspection() -> Iterator[str]:
    """An authorization server that knows the opaque token `alice` (RFC 7662)."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            token = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())["token"][0]
            facts = {"active": token == "alice", "client_id": "desktop", "sub": "alice", "scope": "tools files"}
            broken = token == "boom"
            answer(self, 500 if broken else 200, json.dumps({**facts, "exp": int(NOW) + 60, "iss": ISSUER}))

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with http_server(Handler) as url:
        yield url


def run_block(name: str, **names: Any) -> HybridApp:
    """Run a block of the document's code and give its `app`."""
    exec(BLOCKS[name], names)
    app = names["app"]
    assert isinstance(app, HybridApp)
    return app


async def test_the_verifier_in_the_document_works_as_it_stands_there(introspection: str) -> None:
    lines = BLOCKS["introspection"].partition("class ")[2].partition("\n\n\napp")[0].splitlines()
    assert len([line for line in lines if line]) <= 15
    async with AsgiClient(run_block("introspection", server=telling(), url=introspection)) as client:
        whoami = mcp.body(mcp.tool("whoami"))
        good = await client.request("POST", "/mcp", mcp.headers(None, None, bearer("alice")), whoami)
        assert text(good) == "alice desktop ['tools', 'files']"
        assert (await ask(client, bearer("carol"))).status == 401
        assert (await ask(client, bearer("boom"))).status == 503


async def test_the_authenticator_in_the_document_works_as_it_stands_there() -> None:
    async with AsgiClient(run_block("authenticator", server=telling())) as client:
        assert (await ask(client)).status == 401
        talk = await opened(client, ("x-forwarded-user", "alice"))
        assert (await talk.post(mcp.request("ping"))).header("mcp-hybrid-route") == "session"
        assert (await person(client, talk.session, ("x-forwarded-user", "bob")).post(mcp.request("ping"))).status == 404


@pytest.mark.parametrize("name", ["keys", "jwt"])
def test_the_configuration_in_the_document_is_accepted(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("api-keys.toml").write_text("", encoding="utf-8")
    app = HybridApp(telling(), Settings(**tomllib.loads(BLOCKS[name])))
    assert app.authenticated


def test_every_block_of_the_document_is_tested() -> None:
    source = Path(__file__).read_text(encoding="utf-8") + Path(__file__).with_name(
        "test_authentication_served.py"
    ).read_text(encoding="utf-8")
    assert set(BLOCKS) == {"key", "keys", "jwt", "introspection", "authenticator"}
    assert [name for name in BLOCKS if f'"{name}"' not in source] == []


# Servers that bring their own


async def test_an_mcpserver_with_authentication_of_its_own_is_never_served_without() -> None:
    async with running(server=own()) as setup:
        assert setup.app.authenticated
        refused = await ask(setup.client)
        assert refused.status == 401
        assert f"{WELL_KNOWN}/mcp" in (refused.header("www-authenticate") or "")
        assert (await ask(setup.client, bearer("alice"))).status == 200
        metadata = await setup.client.request("GET", f"{WELL_KNOWN}/mcp")
        assert metadata.json()["scopes_supported"] == ["tools"]
        assert metadata.json()["authorization_servers"][0].startswith(ISSUER)


async def test_its_demand_that_tokens_name_the_resource_is_kept() -> None:
    async with running(server=own(validate_token_resource=True)) as setup:
        assert (await ask(setup.client, bearer("alice"))).status == 401


async def test_its_scopes_are_needed_with_the_operators_tokens_too(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path)
    async with guarded.running({"required_scopes": ["files"]}, server=own()) as setup:
        assert (await ask(setup.client, bearer("alice"))).status == 403
        assert (await ask(setup.client, guarded.token(scope="files"))).status == 403
        assert (await ask(setup.client, guarded.token(scope="files tools"))).status == 200


async def test_a_fastmcp_with_authentication_of_its_own_is_never_served_without() -> None:
    known = {"alice": {"client_id": "c", "sub": "alice", "scopes": ["tools"]}}
    verifier = StaticTokenVerifier(known, required_scopes=["tools"])
    provider = RemoteAuthProvider(verifier, [AnyHttpUrl(ISSUER)], "http://127.0.0.1:8000")
    server = fastmcp.FastMCP("own", auth=provider)

    @server.tool
    async def whoami() -> str:
        token = fastmcp_access_token()
        return token.client_id if token is not None else "nobody"

    async with running(server=server) as setup:
        refused = await ask(setup.client)
        assert refused.status == 401
        assert f'resource_metadata="http://127.0.0.1:8000{WELL_KNOWN}/mcp", scope="tools"' in (
            refused.header("www-authenticate") or ""
        )
        message = mcp.body(mcp.tool("whoami"))
        good = await setup.client.request("POST", "/mcp", mcp.headers(None, None, bearer("alice")), message)
        assert text(good) == "c"
        metadata = await setup.client.request("GET", f"{WELL_KNOWN}/mcp")
        assert metadata.json()["resource"] == "http://127.0.0.1:8000/mcp"


async def test_a_server_that_is_its_own_authorization_server_lets_the_sdks_client_log_in() -> None:
    login = Login(Issuer(time.time()))
    url = "http://127.0.0.1:8000"
    auth = AuthSettings(
        issuer_url=AnyHttpUrl(url),
        resource_server_url=AnyHttpUrl(f"{url}/mcp"),
        client_registration_options=SCOPES,
        required_scopes=["tools"],
        validate_token_resource=False,
    )
    app = HybridApp(telling(auth=auth, auth_server_provider=login))
    assert app.authenticated
    transport = httpx2.ASGITransport(app=app)
    memory = Memory()
    async with (
        app.lifespan(),
        httpx2.AsyncClient(transport=transport, auth=oauth(f"{url}/mcp", memory, transport)) as http,
    ):
        answer = await http.post(f"{url}/mcp", headers=dict(mcp.headers()), json=mcp.tool("whoami"))
        assert answer.status_code == 200
        assert answer.json()["result"]["content"][0]["text"].startswith("alice ")
    assert login.logins == 1


async def test_a_verifier_that_is_given_stands_for_the_servers_own() -> None:
    class Carol:
        async def verify_token(self, token: str) -> AccessToken | None:
            return AccessToken(token=token, client_id="c", scopes=["tools"]) if token == "carol" else None

    async with running(server=own(), token_verifier=Carol()) as setup:
        assert (await ask(setup.client, bearer("carol"))).status == 200
        assert (await ask(setup.client, bearer("alice"))).status == 401


async def test_a_program_around_the_app_that_authenticates_binds_the_sessions() -> None:
    app = HybridApp(telling())
    middleware = [
        Middleware(AuthenticationMiddleware, backend=BearerAuthBackend(Opaque())),
        Middleware(AuthContextMiddleware),
    ]
    async with AsgiClient(Starlette(lifespan=app.lifespan, routes=[Mount("/", app)], middleware=middleware)) as client:
        talk = await opened(client, bearer("alice"))
        assert text(await talk.post(mcp.tool("whoami"))).startswith("alice ")
        assert (await person(client, talk.session, bearer("bob")).post(mcp.request("ping"))).status == 404


async def test_mounted_below_a_path_the_challenge_points_to_where_the_metadata_is(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path)
    app = HybridApp(telling(), Settings(auth=guarded.settings()))
    async with AsgiClient(Starlette(lifespan=app.lifespan, routes=[Mount("/tools", app)])) as client:
        refused = await ask(client, path="/tools/mcp")
        found = re.search(r'resource_metadata="http://127.0.0.1:8000([^"]+)"', refused.header("www-authenticate") or "")
        assert found is not None
        metadata = await client.request("GET", found[1])
        assert metadata.json()["resource"] == "http://127.0.0.1:8000/tools/mcp"


async def test_nothing_of_a_callers_token_is_left_behind_in_the_task_that_served_it() -> None:
    app = HybridApp(telling(), token_verifier=Opaque())
    async with app.lifespan(), httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app)) as http:
        headers = dict(mcp.headers(None, None, bearer("alice")))
        answer = await http.post("http://127.0.0.1:8000/mcp", headers=headers, json=mcp.tool("whoami"))
        assert answer.json()["result"]["content"][0]["text"].startswith("alice ")
        assert auth_context_var.get() is None
