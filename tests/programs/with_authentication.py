"""An `MCPServer` whose author has given it a verifier."""

from __future__ import annotations

from mcp.server import MCPServer
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from pydantic import AnyHttpUrl


class Alice:
    async def verify_token(self, token: str) -> AccessToken | None:
        return AccessToken(token=token, client_id="c", scopes=[], subject=token) if token == "alice" else None


server = MCPServer(
    "with authentication",
    auth=AuthSettings(issuer_url=AnyHttpUrl("https://login.example.org"), resource_server_url=None),
    token_verifier=Alice(),
)
