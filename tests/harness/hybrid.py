"""A `HybridApp` around the example server, with the clock and the users in the test's hands."""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from mcp.server.auth.provider import TokenVerifier
from starlette.types import Scope

from harness.asgi import AsgiClient
from harness.example import Example
from harness.mcp import Conversation
from mcp_hybrid import Caller, Cause, Fault, HybridApp, Owner, Settings
from mcp_hybrid.backplane.redis import RedisBackplane
from mcp_hybrid.containment import on_trio
from mcp_hybrid.sessions.registry import Registry
from mcp_hybrid.sessions.seal import fresh_key

NOW = 1_800_000_000.0
KEY = fresh_key()


class HeaderAuthenticator:
    """Takes the user's word for who it is: the stub that stands for authentication."""

    async def authenticate(self, scope: Scope) -> Caller | Fault:
        user = dict(scope["headers"]).get(b"x-user", b"alice").decode()
        if user == "nobody":
            return Fault(Cause.UNAUTHORIZED, "Say who you are.", headers=((b"www-authenticate", b"Bearer"),))
        return Caller(Owner("test", user, "client"))


@dataclass
class WallClock:
    """A wall clock that stands still until it is moved, or set going: then it follows the autojump clock."""

    now: float = NOW
    since: float | None = None

    def start(self) -> None:
        """Go on from here as the run's own clock does."""
        self.since = anyio.current_time()

    def __call__(self) -> float:
        return self.now + (anyio.current_time() - self.since if self.since is not None else 0)


@dataclass
class Setup:
    """A running application and all that a test looks at."""

    client: AsgiClient
    app: HybridApp
    example: Example
    clock: WallClock = field(default_factory=WallClock)

    @property
    def registry(self) -> Registry:
        return self.app.registry


@asynccontextmanager
async def running(
    *, users: bool = False, server: object = None, token_verifier: TokenVerifier | None = None, **settings: Any
) -> AsyncIterator[Setup]:
    """Run the example server, or another, with these settings; on Trio if not `runtime` says otherwise."""
    if on_trio():  # the clock of these tests may jump while another thread is at work
        settings.setdefault("runtime", "trio")
    example, clock = Example(), WallClock()
    app = HybridApp(
        server or example.server,
        Settings(**settings),
        token_verifier=token_verifier,
        authenticator=HeaderAuthenticator() if users else None,
        clock=clock,
    )
    async with AsgiClient(app) as client:
        yield Setup(client, app, example, clock)


@dataclass
class Fleet:
    """Several applications that share sessions, as worker processes do. Each runs an example server of its own."""

    workers: list[Setup]

    def at(self, conversation: Conversation, worker: int) -> Conversation:
        """Give the same conversation with its next requests going to that worker."""
        client = self.workers[worker].client
        return Conversation(client, conversation.session, conversation.version, conversation.path)


@asynccontextmanager
async def fleet(url: str, size: int, **settings: Any) -> AsyncIterator[Fleet]:
    """Run so many applications over one Redis, each test's under names of its own."""
    prefix = f"test-{secrets.token_hex(4)}:"
    settings["sessions"] = {"keys": [KEY], **settings.get("sessions", {})}
    shared = Settings(**{"stream_after": "200ms", **settings})
    async with AsyncExitStack() as stack:
        workers = []
        for _ in range(size):
            example = Example()
            backplane = RedisBackplane(url, prefix=prefix)
            app = HybridApp(example.server, shared, backplane=backplane)
            workers.append(Setup(await stack.enter_async_context(AsgiClient(app, patience=60)), app, example))
            await until_known(backplane)
        yield Fleet(workers)


async def until_known(backplane: RedisBackplane) -> None:
    """Wait until the other workers can know of this one: until its first sign of life has been taken."""
    with anyio.fail_after(60):
        while backplane._heard_at == -math.inf:  # noqa: ASYNC110 - nobody announces it
            await anyio.sleep(0.005)
