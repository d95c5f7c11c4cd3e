"""A small authorization server with the SDK's own routes, and a person who logs in there."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qsl, urlsplit

import httpx2
import uvicorn
from mcp.client.auth import OAuthClientProvider
from mcp.server.auth.provider import (
    AccessToken,
    AuthorizationCode,
    AuthorizationParams,
    OAuthAuthorizationServerProvider,
    RefreshToken,
    construct_redirect_uri,
)
from mcp.server.auth.routes import create_auth_routes
from mcp.server.auth.settings import ClientRegistrationOptions
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from pydantic import AnyHttpUrl, AnyUrl, TypeAdapter
from pydantic.config import ConfigDict
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from harness.issuer import Issuer

CALLBACK = "http://127.0.0.1:1/callback"
"""Where the browser would come back to. Nobody listens there: the test reads the redirect."""

SCOPES = ClientRegistrationOptions(enabled=True, valid_scopes=["tools"], default_scopes=["tools"])


class Login(OAuthAuthorizationServerProvider[AuthorizationCode, RefreshToken, AccessToken]):
    """Registers every client, and gives it tokens of the issuer's for `user`."""

    def __init__(self, issuer: Issuer, user: str = "alice", lifetime: int = 600) -> None:
        self.issuer = issuer
        self.user = user
        self.lifetime = lifetime
        self.logins = 0
        self.refreshes = 0
        self.resources: list[str | None] = []
        """For which resource tokens were asked (RFC 8707)."""
        self._clients: dict[str, OAuthClientInformationFull] = {}
        self._codes: dict[str, AuthorizationCode] = {}
        self._refresh: dict[str, RefreshToken] = {}
        self._access: dict[str, AccessToken] = {}

    async def get_client(self, client_id: str) -> OAuthClientInformationFull | None:
        return self._clients.get(client_id)

    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        assert client_info.client_id is not None
        self._clients[client_info.client_id] = client_info

    async def authorize(self, client: OAuthClientInformationFull, params: AuthorizationParams) -> str:
        self.logins += 1
        self.resources.append(params.resource)
        code = AuthorizationCode(
            code=secrets.token_hex(20),
            scopes=params.scopes or [],
            expires_at=time.time() + 60,
            client_id=str(client.client_id),
            code_challenge=params.code_challenge,
            redirect_uri=params.redirect_uri,
            redirect_uri_provided_explicitly=params.redirect_uri_provided_explicitly,
            resource=params.resource,
        )
        self._codes[code.code] = code
        return construct_redirect_uri(str(params.redirect_uri), code=code.code, state=params.state)

    async def load_authorization_code(
        self,
        client: OAuthClientInformationFull,  # noqa: ARG002 - the protocol's
        authorization_code: str,
    ) -> AuthorizationCode | None:
        return self._codes.get(authorization_code)

    async def exchange_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: AuthorizationCode
    ) -> OAuthToken:
        del self._codes[authorization_code.code]
        return self._token(client, authorization_code.scopes, authorization_code.resource)

    async def load_refresh_token(
        self,
        client: OAuthClientInformationFull,  # noqa: ARG002 - the protocol's
        refresh_token: str,
    ) -> RefreshToken | None:
        return self._refresh.get(refresh_token)

    async def exchange_refresh_token(
        self, client: OAuthClientInformationFull, refresh_token: RefreshToken, scopes: list[str]
    ) -> OAuthToken:
        self.refreshes += 1
        del self._refresh[refresh_token.token]
        return self._token(client, scopes, refresh_token.resource)

    async def load_access_token(self, token: str) -> AccessToken | None:
        return self._access.get(token)

    async def revoke_token(self, token: AccessToken | RefreshToken) -> None:
        raise NotImplementedError

    def _token(self, client: OAuthClientInformationFull, scopes: list[str], resource: str | None) -> OAuthToken:
        now = int(time.time())
        name = str(client.client_id)
        signed = self.issuer.token(
            sub=self.user, client_id=name, scope=" ".join(scopes), aud=resource, exp=now + self.lifetime, iat=now,
            jti=secrets.token_hex(8),
        )  # fmt: skip
        refresh = RefreshToken(token=secrets.token_hex(20), client_id=name, scopes=scopes, resource=resource)
        self._refresh[refresh.token] = refresh
        self._access[signed] = AccessToken(
            token=signed, client_id=name, scopes=scopes, expires_at=now + self.lifetime, subject=self.user
        )
        return OAuthToken(
            access_token=signed, expires_in=self.lifetime, scope=" ".join(scopes), refresh_token=refresh.token
        )


@contextmanager
def login_server(login: Login) -> Iterator[str]:
    """Serve it on a loopback port, with its key set; the issuer takes the address for its name."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        login.issuer.issuer = url

        async def key_set(_request: Request) -> PlainTextResponse:
            return PlainTextResponse(login.issuer.key_set(), media_type="application/json")

        # As the SDK's own settings keep it: a slash at the end would be another issuer.
        plain = TypeAdapter(AnyHttpUrl, config=ConfigDict(url_preserve_empty_path=True)).validate_python(url)
        routes = create_auth_routes(login, plain, client_registration_options=SCOPES)
        app = Starlette(routes=[*routes, Route("/jwks.json", key_set)])
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            until = time.monotonic() + 20
            while not server.started:
                assert thread.is_alive(), "the login server did not start"
                assert time.monotonic() < until, "the login server did not start in time"
                time.sleep(0.01)
            yield url
        finally:
            server.should_exit = True
            thread.join(20)
        assert not thread.is_alive(), "the login server did not stop"


class Memory:
    """Where a client keeps its tokens."""

    def __init__(self) -> None:
        self.tokens: OAuthToken | None = None
        self.client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


class Browser:
    """Stands for the person's browser: opens the login page, and reads where it is sent back to."""

    def __init__(self, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        self._transport = transport
        self._sent_back_to = ""

    async def open(self, url: str) -> None:
        async with httpx2.AsyncClient(transport=self._transport) as http:
            answer = await http.get(url)
        assert answer.status_code == 302, answer.text
        self._sent_back_to = answer.headers["location"]

    async def come_back(self) -> AuthorizationCodeResult:
        query = dict(parse_qsl(urlsplit(self._sent_back_to).query))
        return AuthorizationCodeResult(code=query["code"], state=query.get("state"), iss=query.get("iss"))


def oauth(url: str, memory: Memory, transport: httpx2.AsyncBaseTransport | None = None) -> OAuthClientProvider:
    """Make the SDK's own OAuth client for an endpoint."""
    browser = Browser(transport)
    metadata = OAuthClientMetadata(redirect_uris=[AnyUrl(CALLBACK)], client_name="harness")
    return OAuthClientProvider(url, metadata, memory, browser.open, browser.come_back)
