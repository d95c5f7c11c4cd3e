"""The example server behind authentication: API keys, and the JWTs of an issuer whose key set is a file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from mcp.server import MCPServer
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.elicitation import ElicitationResult
from mcp.server.mcpserver.resolve import Elicit, Resolve
from pydantic import AnyHttpUrl, BaseModel

from harness import mcp
from harness.asgi import Answer, AsgiClient
from harness.hybrid import NOW, Setup, running
from harness.issuer import AUDIENCE, ISSUER, Issuer, bearer
from harness.mcp import Conversation, Json
from mcp_hybrid.security import api_keys

Header = tuple[str, str]


class Guarded:
    """What a test needs to be let in, or not."""

    def __init__(self, folder: Path) -> None:
        self.issuer = Issuer(NOW)
        self.jwks = folder / "jwks.json"
        self.jwks.write_text(self.issuer.key_set())
        self.keys = folder / "keys.toml"
        self.key = api_keys.make("alice", ["tools"])
        self.keys.write_text(self.key.entry)

    def settings(self, **changes: Any) -> Json:
        """Give the section `auth`; `None` leaves a setting out."""
        usual = {
            "issuer": ISSUER,
            "audience": [AUDIENCE],
            "jwks": str(self.jwks),
            "api_keys": str(self.keys),
            "required_scopes": ["tools"],
        }
        return {name: value for name, value in {**usual, **changes}.items() if value is not None}

    def token(self, **changes: Any) -> Header:
        """Give the header of a good token with some claims changed."""
        return bearer(self.issuer.token(**changes))

    @asynccontextmanager
    async def running(self, auth: Json | None = None, **options: Any) -> AsyncIterator[Setup]:
        async with running(auth=self.settings(**(auth or {})), **options) as setup:
            yield setup


class Person(Conversation):
    """A conversation whose every request carries a credential."""

    credential: Header

    def headers(self, *extra: Header, accept: str | None = mcp.BOTH) -> list[Header]:
        return super().headers(self.credential, *extra, accept=accept)


async def opened(client: AsgiClient, credential: Header, version: str = mcp.LEGACY) -> Person:
    """Open a session with a credential."""
    answer = await client.request(
        "POST", "/mcp", mcp.headers(None, None, credential), mcp.body(mcp.initialize(version))
    )
    session = answer.header("mcp-session-id")
    assert session is not None, answer
    return person(client, session, credential, version)


def person(client: AsgiClient, session: str, credential: Header, version: str = mcp.LEGACY) -> Person:
    """Give the conversation of somebody who knows a session id."""
    talk = Person(client, session, version, "/mcp")
    talk.credential = credential
    return talk


async def ask(client: AsgiClient, *headers: Header, method: str = "POST", path: str = "/mcp") -> Answer:
    """Send a ping without a session."""
    named = mcp.headers(None, None, *headers) if method == "POST" else [("accept", "text/event-stream"), *headers]
    return await client.request(method, path, named, mcp.body(mcp.request("ping")) if method == "POST" else b"")


class Name(BaseModel):
    name: str


async def who() -> Elicit[Name]:
    return Elicit("Who is there?", Name)


def telling(**options: Any) -> MCPServer[Any]:
    """Make a server whose tools tell what they know of their caller."""
    server = MCPServer("telling", version="1", **options)

    @server.tool()
    async def whoami() -> str:
        token = get_access_token()
        return f"{token.subject} {token.client_id} {token.scopes}" if token is not None else "nobody"

    @server.tool()
    def whoami_in_a_thread() -> str:
        token = get_access_token()
        return str(token.subject) if token is not None else "nobody"

    @server.tool()
    async def greet(answer: Annotated[ElicitationResult[Name], Resolve(who)]) -> str:
        return f"hello {answer.data.name}" if answer.action == "accept" else answer.action

    return server


def text(answer: Answer) -> str:
    """Give the text of a tool's result."""
    result = answer.json()["result"] if answer.header("content-type") == "application/json" else None
    if result is None:
        result = answer.events()[-1].json()["result"]
    said: str = result["content"][0]["text"]
    return said


class Opaque:
    """A verifier of four lines. It knows `alice` and `bob`, and can be told to fail."""

    def __init__(self, error: Exception | None = None, **more: Any) -> None:
        self.error = error
        self.more = more

    async def verify_token(self, token: str) -> AccessToken | None:
        if self.error is not None:
            raise self.error
        known = token in ("alice", "bob")
        return AccessToken(token=token, client_id="c", scopes=["tools"], subject=token, **self.more) if known else None


def own(**changes: Any) -> MCPServer[Any]:
    """Make a server whose author has given it authentication."""
    url = AnyHttpUrl("http://127.0.0.1:8000/mcp")
    auth = AuthSettings(
        issuer_url=AnyHttpUrl(ISSUER),
        resource_server_url=url,
        required_scopes=["tools"],
        **{"validate_token_resource": False, **changes},
    )
    return telling(auth=auth, token_verifier=Opaque())
