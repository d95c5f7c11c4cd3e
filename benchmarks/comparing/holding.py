"""How much memory a server takes for each session that it holds."""

from __future__ import annotations

from comparing.clients import Client
from comparing.plans import ADD
from comparing.processes import Server

WARM_UP = 300
"""Sessions before memory is looked at: imports, caches and free lists fill with the first few."""


def measure(server: Server, sessions: int) -> dict[str, float]:
    """Open sessions, make a call in each, and leave them open; give the resident memory that each one added."""
    with Client.on(server.port) as client:
        _hold(client, WARM_UP)
        before = server.rss()
        _hold(client, sessions)
        return {"session_kib": (server.rss() - before) / sessions}


def _hold(client: Client, sessions: int) -> None:
    for _ in range(sessions):
        client.call("add", ADD, client.open_session())
