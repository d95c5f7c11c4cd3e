"""The pages that a served program brings along: its own routes (`custom_route`), and those of its authorization server.

They are served beside the endpoint by a Starlette application, as the program's own HTTP application would serve them,
and where the program runs. The endpoint's and the operator's pages come first, and a route that is at the very path of
one of these is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from mcp.server import MCPServer
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, UnauthenticatedUser
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from mcp_hybrid.errors import ConfigurationError
from mcp_hybrid.runtime.program import Program
from mcp_hybrid.runtime.routes import serve_on
from mcp_hybrid.targets import kind_of


def custom_routes(server: object) -> list[BaseRoute]:
    """Return the routes that a server's author has added to it. Where they are kept is pinned by contract tests."""
    if isinstance(server, MCPServer):
        return [*server._custom_starlette_routes]  # noqa: SLF001 - there is no public way
    if kind_of(server) == "FastMCP":
        fastmcp: Any = server
        return [*fastmcp._get_additional_http_routes()]  # noqa: SLF001 - as above
    return []


class ProgramPages:
    """The pages of one program."""

    def __init__(self, server: object, routes: Sequence[BaseRoute], program: Program, taken: Collection[str]) -> None:
        """Serve `routes` of `server` where its `program` runs.

        Raises:
            ConfigurationError: One of them is at a path that is `taken`.
        """
        self.paths = list(dict.fromkeys(str(getattr(route, "path", "")) for route in routes))
        """Where they are, as the program writes it."""
        places = {each.rstrip("/") for each in taken}
        for path in self.paths:
            if path.rstrip("/") in places:
                raise ConfigurationError(f"the server's route {path} is where a page of ours is: give it another path")
        self._app = Starlette(routes=routes)
        self._app.state.fastmcp_server = server  # where FastMCP's pages look for their server
        self._routes = routes
        self._program = program

    def has(self, scope: Scope) -> bool:
        """Whether there is something at a request's path. Starlette redirects from one with a slash more or less."""
        if not self._routes:
            return False
        path: str = scope["path"]
        other = path.rstrip("/") if path.endswith("/") else f"{path}/"
        return self._matches(scope) or (path != "/" and self._matches({**scope, "path": other}))

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, which finds out from its scope who asks, if that is known."""
        scope.setdefault("auth", AuthCredentials())
        scope.setdefault("user", UnauthenticatedUser())
        await serve_on(self._program, self._app, scope, receive, send)

    def _matches(self, scope: Scope) -> bool:
        try:
            return any(route.matches(scope)[0] is not Match.NONE for route in self._routes)
        except ValueError:  # a route with a number in its path, and a path with more digits than Python reads
            return False
