"""Which page is where, and who may read it.

The pages are on the endpoint's own port, or on a port of their own and then nowhere else. The port that a connection
came in by is known from its socket; nothing that a client sends decides it.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from starlette.types import Scope

from mcp_hybrid.errors import Cause, Fault
from mcp_hybrid.operator.health import Health, Reasons
from mcp_hybrid.operator.page import Access, Asked, Page, write_page
from mcp_hybrid.operator.sessions import Running, Sessions
from mcp_hybrid.security.hosts import HostPolicy
from mcp_hybrid.settings import Settings
from mcp_hybrid.telemetry.metrics import CONTENT_TYPE, Metrics

Admit = Callable[[Scope], Awaitable[Fault | None]]
"""Refuses a request whose credential does not open the endpoint."""

READ: Final = ("GET", "HEAD")
SESSIONS: Final = "/admin/sessions"
PATHS: Final = ("/healthz", "/readyz", "/metrics", SESSIONS)
"""Where the pages are. No program's page is at one of them, also where the operator's are on another port."""
_CHALLENGE: Final = ((b"www-authenticate", b'Bearer realm="operator"'),)


class Pages:
    """The operator's pages of one application."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        hosts: HostPolicy,
        admit: Admit,
        reasons: Reasons,
        service: Running,
    ) -> None:
        self._port = settings.operator.port
        self._hosts = hosts
        self._admit = admit
        self._metrics = metrics
        health = Health(reasons)
        pages: dict[str, Page] = {
            "/healthz": Page("healthz", READ, Access.ANYBODY, health.alive),
            "/readyz": Page("readyz", READ, Access.ANYBODY, health.ready),
        }
        if settings.operator.metrics:
            pages["/metrics"] = Page("metrics", READ, Access.AS_ENDPOINT, self._show_metrics)
        self._key = settings.operator.admin_key
        self._session: Page | None = None
        if self._key is not None:
            sessions = Sessions(service, alone=settings.server.workers == 1)
            pages[SESSIONS] = Page("sessions", READ, Access.WITH_KEY, sessions.serve)
            self._session = Page("session", ("DELETE",), Access.WITH_KEY, sessions.serve)
        self._pages: Mapping[str, Page] = pages

    def own_port(self, scope: Scope) -> bool:
        """Whether a request came in by the port that is for these pages only."""
        return bool(self._port) and (scope.get("server") or ("", 0))[1] == self._port

    def find(self, scope: Scope, path: str) -> tuple[Page, str] | None:
        """Return the page at `path` and what of the path is its argument, or None where there is none."""
        if self._port and not self.own_port(scope):
            return None
        if (page := self._pages.get(path)) is not None:
            return page, ""
        if self._session is not None and path.startswith(f"{SESSIONS}/"):
            return self._session, path.removeprefix(f"{SESSIONS}/")
        return None

    async def serve(self, page: Page, asked: Asked) -> Fault | None:
        """Answer, or return why not."""
        fault = await self._refuses(page, asked)
        if fault is None and asked.head.method not in page.methods:
            allow = ((b"allow", ", ".join(page.methods).encode()),)
            fault = Fault(
                Cause.METHOD_NOT_ALLOWED, f"This page takes {' and '.join(page.methods)} only.", headers=allow
            )
        return fault if fault is not None else await page.serve(asked)

    async def _refuses(self, page: Page, asked: Asked) -> Fault | None:
        if page.access is Access.ANYBODY:
            return None
        own = self.own_port(asked.scope)
        # Prometheus comes by a pod's address. On the endpoint's port the settings say which addresses it has.
        if (fault := self._hosts.check(asked.head, addresses=own)) is not None:
            return fault
        if page.access is Access.WITH_KEY:
            return None if self._has_key(asked) else _NO_KEY
        if own:
            return None
        return await self._admit(asked.scope)

    def _has_key(self, asked: Asked) -> bool:
        """Whether the request brings the admin key. How long that takes says nothing of how much of it was right."""
        given = [value for name, value in asked.scope["headers"] if name == b"authorization"]
        if len(given) != 1 or self._key is None:
            return False
        scheme, _, credential = given[0].partition(b" ")
        right = hmac.compare_digest(credential.strip(), self._key.get_secret_value().encode())
        return right and scheme.lower() == b"bearer"

    async def _show_metrics(self, asked: Asked) -> Fault | None:
        await write_page(asked, 200, await self._metrics.page(), CONTENT_TYPE)
        return None


_NO_KEY: Final = Fault(
    Cause.UNAUTHORIZED, "This page needs the operator's admin key, as a bearer token.", headers=_CHALLENGE
)
