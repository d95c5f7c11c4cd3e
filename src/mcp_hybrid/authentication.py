"""How requests to one server are authenticated: what the settings, the embedding program and the server itself say.

Every verifier that is configured counts; a token is good if one of them takes it. The server's own, which its author
gave it, is among them: it is never served more openly than it was meant to be.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from mcp.server import MCPServer
from mcp.server.auth.middleware.bearer_auth import BearerAuthBackend
from mcp.server.auth.provider import AccessToken, TokenVerifier
from mcp.server.auth.routes import create_auth_routes
from pydantic import AnyHttpUrl
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from mcp_hybrid.errors import ConfigurationError, Fault
from mcp_hybrid.runtime.names import RuntimeName
from mcp_hybrid.runtime.program import IN_PLACE, Program
from mcp_hybrid.security.bearer import BearerAuthenticator
from mcp_hybrid.security.jwks import FileKeys, KeySource, RemoteKeys
from mcp_hybrid.security.metadata import WELL_KNOWN, ProtectedResource
from mcp_hybrid.security.owner import Authenticator, Caller
from mcp_hybrid.security.verifiers import ApiKeyVerifier, JwtVerifier
from mcp_hybrid.settings import AuthSettings, Settings
from mcp_hybrid.targets import kind_of

HOW: Final = "set auth.api_keys or auth.issuer (docs/authentication.md), or say --allow-anonymous"


@dataclass(frozen=True)
class Authentication:
    """How requests are authenticated, and what is served beside the endpoint for it."""

    authenticator: Authenticator | None = None
    """None: everybody may come."""
    resource: ProtectedResource | None = None
    routes: Sequence[BaseRoute] = ()
    """The authorization server that the served server brings along."""
    words: str = "none"
    """What it is, for the operator."""

    def beside(self, scope: Scope) -> Callable[[Scope, Receive, Send], Awaitable[Fault | None]] | None:
        """Return what serves a path that is not the endpoint's, if authentication has something there."""
        return self._metadata if self.resource is not None and _path(scope) in self.resource.paths else None

    async def _metadata(self, scope: Scope, receive: Receive, send: Send) -> Fault | None:  # noqa: ARG002 - as ASGI
        assert self.resource is not None
        return await self.resource.serve(scope, send)


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


@dataclass
class _Parts:
    """What is collected for a `BearerAuthenticator`."""

    program: Program
    backends: list[BearerAuthBackend] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    url: str | None = None
    servers: list[str] = field(default_factory=list)
    scopes: list[str] = field(default_factory=list)
    routes: list[BaseRoute] = field(default_factory=list)

    def add(self, words: str, verifier: TokenVerifier, resource: AnyHttpUrl | None = None) -> None:
        self.words.append(words)
        self.backends.append(BearerAuthBackend(verifier, resource_server_url=resource))

    def add_own(self, words: str, verifier: TokenVerifier, resource: AnyHttpUrl | None = None) -> None:
        """Add a verifier that is a part of the program."""
        crosses = self.program.runtime is RuntimeName.ASYNCIO
        self.add(words, _CrossingVerifier(verifier, self.program) if crosses else verifier, resource)


class _CrossingVerifier:
    """Has a verifier of the program's verify tokens where the program runs."""

    def __init__(self, verifier: TokenVerifier, program: Program) -> None:
        self._verifier = verifier
        self._program = program

    async def verify_token(self, token: str) -> AccessToken | None:
        return await self._program.run(partial(self._verifier.verify_token, token), "verify_token")


class CrossingAuthenticator:
    """Has an authenticator of the program's find out who asks where the program runs."""

    def __init__(self, authenticator: Authenticator, program: Program) -> None:
        self._authenticator = authenticator
        self._program = program

    async def authenticate(self, scope: Scope) -> Caller | Fault:
        """Return what the authenticator says."""
        return await self._program.run(partial(self._authenticator.authenticate, scope), "authenticate")


def authentication_for(
    server: object,
    settings: Settings,
    clock: Callable[[], float],
    token_verifier: TokenVerifier | None = None,
    program: Program = IN_PLACE,
) -> Authentication:
    """Return how requests to `server` are authenticated. A `token_verifier` that is given stands for the server's own.

    Both run where the `program` does.

    Raises:
        ConfigurationError: Settings contradict each other, or a file they name cannot be used.
    """
    auth = settings.auth
    parts = _Parts(program, scopes=list(auth.required_scopes))
    if auth.api_keys is not None:
        keys = ApiKeyVerifier(Path(auth.api_keys), clock)
        parts.add(f"API keys ({len(keys)} in {auth.api_keys})", keys)
    if auth.issuer is not None:
        parts.add(f"JWTs of {auth.issuer}", _jwt_verifier(auth, clock))
        parts.servers = [auth.issuer]
    elif auth.jwks is not None:
        raise ConfigurationError("auth.jwks is set without auth.issuer, whose tokens it would verify")
    if token_verifier is not None:
        parts.add_own(f"tokens by {type(token_verifier).__name__}", token_verifier)
    else:
        _add_own(parts, server, settings.path)
    parts.url = auth.resource or parts.url
    parts.servers = auth.authorization_servers or parts.servers
    if not parts.backends:
        return _anonymous(auth)
    if auth.allow_anonymous:
        raise ConfigurationError(
            "auth.allow_anonymous is for servers without authentication, and this one has "
            f"{' and '.join(parts.words)}: drop one or the other"
        )
    scopes = list(dict.fromkeys(parts.scopes))
    resource = ProtectedResource(settings.path, url=parts.url, authorization_servers=parts.servers, scopes=scopes)
    authenticator = BearerAuthenticator(parts.backends, resource, scopes)
    return Authentication(authenticator, resource, parts.routes, " and ".join(parts.words))


def _anonymous(auth: AuthSettings) -> Authentication:
    """Return no authentication; a setting that would then silently mean nothing is refused."""
    for name in ("required_scopes", "audience", "authorization_servers"):
        if getattr(auth, name):
            raise ConfigurationError(f"auth.{name} is set, but nothing that verifies a token: {HOW.partition(',')[0]}")
    return Authentication()


def _jwt_verifier(auth: AuthSettings, clock: Callable[[], float]) -> JwtVerifier:
    assert auth.issuer is not None
    audience = auth.audience or ([auth.resource] if auth.resource is not None else [])
    if not audience:
        raise ConfigurationError(
            "auth.issuer needs auth.audience, or every token of that issuer would be let in: "
            "set it to what the issuer puts into `aud` for this server"
        )
    if auth.jwks is None:
        raise ConfigurationError("auth.issuer needs auth.jwks: the URL or the file of the issuer's public keys")
    remote = auth.jwks.startswith(("https://", "http://"))
    keys: KeySource = RemoteKeys(auth.jwks, auth.algorithms) if remote else FileKeys(Path(auth.jwks), auth.algorithms)
    return JwtVerifier(
        keys, issuer=auth.issuer, audience=audience, algorithms=auth.algorithms, clock_skew=auth.clock_skew,
        clock=clock,
    )  # fmt: skip


# What a server brings along


def _add_own(parts: _Parts, server: object, path: str) -> None:
    """Add the authentication that the server's author has given it. Where that is kept is pinned by contract tests."""
    if isinstance(server, MCPServer):
        _add_mcpserver(parts, server)
    elif kind_of(server) == "FastMCP":
        _add_fastmcp(parts, server, path)


def _add_mcpserver(parts: _Parts, server: MCPServer[Any]) -> None:
    auth, verifier = server.settings.auth, server._token_verifier  # noqa: SLF001 - there is no public way
    provider = server._auth_server_provider  # noqa: SLF001 - as above
    if auth is None or verifier is None:
        return
    own = auth.resource_server_url
    parts.add_own("the server's own verifier", verifier, own if auth.validate_token_resource else None)
    parts.url = str(own) if own is not None else None
    parts.servers.append(str(auth.issuer_url))
    parts.scopes += auth.required_scopes or []
    if provider is not None:
        parts.routes += create_auth_routes(
            provider=provider,
            issuer_url=auth.issuer_url,
            service_documentation_url=auth.service_documentation_url,
            client_registration_options=auth.client_registration_options,
            revocation_options=auth.revocation_options,
            identity_assertion_enabled=auth.identity_assertion_enabled,
        )


def _add_fastmcp(parts: _Parts, server: Any, path: str) -> None:
    provider = server.auth
    if provider is None:
        return
    parts.routes += provider.get_routes(mcp_path=path)  # also tells the provider where the endpoint is
    parts.add_own("the server's own provider", provider)
    parts.scopes += provider.required_scopes
    url = provider._get_resource_url(path)  # noqa: SLF001 - there is no public way
    parts.url = str(url) if url is not None else None
    if any(getattr(route, "path", "").startswith(WELL_KNOWN) for route in parts.routes):
        # It serves its metadata by itself; this is only where challenges point.
        parts.servers += [str(one) for one in getattr(provider, "authorization_servers", [provider.base_url])]


# Where it must not be missing


def require(settings: Settings, authenticated: bool) -> None:
    """Refuse to listen where others can come, if nobody is asked who they are.

    Raises:
        ConfigurationError: It says what to do.
    """
    host = settings.server.host
    if not (authenticated or settings.auth.allow_anonymous or is_loopback(host)):
        raise ConfigurationError(
            f"server.host {host} can be reached from other machines, and no authentication is configured: {HOW}"
        )


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only. Of names, only `localhost` is known to."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host.lower() == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
