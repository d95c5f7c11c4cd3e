"""The clients of the table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib.metadata import version
from typing import Final

from clients.installing import Installed


class Why(Enum):
    """Why a client cannot have something, by protocol and not by anybody's fault. The values are the footnotes."""

    NO_SESSION = (
        "Without a session nothing can reach the client but the answer to its request. The call is answered with its "
        "result alone; what would need an answer from the client is refused at once."
    )
    MODERN = "At 2026-07-28 streams cannot be resumed. The result comes on the call's own stream."
    RESULTS_ONLY = (
        "Prints results and nothing else, and says at `initialize` that it cannot be asked anything. What it could not "
        "answer is refused at once."
    )
    NOTHING_TO_CLOSE = "Keeps nothing open between two runs, and has no session to end or never ends it."


@dataclass(frozen=True)
class Row:
    """One client."""

    name: str
    """What its line in the table is known by, from one version of the client to the next."""
    version: Callable[[Installed], str]
    command: Callable[[Installed], Sequence[str]]
    """What starts its driver."""
    cannot: Mapping[str, Why] = field(default_factory=dict)
    """By column."""
    shows_http: bool = True
    """Whether its driver tells of HTTP exchanges."""


def python(driver: str, *arguments: str) -> Callable[[Installed], Sequence[str]]:
    """Start a driver in the environment that is running."""
    return lambda _: [sys.executable, "-m", f"clients.drivers.{driver}", *arguments]


def node(driver: str, *arguments: str) -> Callable[[Installed], Sequence[str]]:
    return lambda installed: [installed.node, str(installed.npm / f"{driver}.mjs"), *arguments]


def inspector(era: str) -> Callable[[Installed], Sequence[str]]:
    return lambda installed: python("inspector", era, installed.node, str(installed.inspector))(installed)


def npm_version(package: str) -> Callable[[Installed], str]:
    return lambda installed: installed.version(package)


def here(package: str) -> Callable[[Installed], str]:
    return lambda _: version(package)


NO_SESSION: Final = dict.fromkeys(
    ("progress", "logging", "subscribe", "elicitation", "sampling", "SSE polling"), Why.NO_SESSION
)
MODERN: Final = {"SSE polling": Why.MODERN}
RESULTS_ONLY: Final = {
    **dict.fromkeys(("progress", "logging", "subscribe", "elicitation", "sampling"), Why.RESULTS_ONLY),
    "close": Why.NOTHING_TO_CLOSE,
}

TYPESCRIPT_1: Final = "@modelcontextprotocol/sdk"
TYPESCRIPT_2: Final = "@modelcontextprotocol/client"
INSPECTOR: Final = "@modelcontextprotocol/inspector"

ROWS: Final = (
    Row("TypeScript sdk 1", npm_version(TYPESCRIPT_1), node("sdk1")),
    Row("TypeScript client 2, legacy", npm_version(TYPESCRIPT_2), node("client2", "legacy")),
    Row("TypeScript client 2, auto", npm_version(TYPESCRIPT_2), node("client2", "auto"), MODERN),
    Row("Python mcp 1", lambda _: "1.30.0", lambda installed: [str(installed.sdk1), "-m", "clients.drivers.sdk1"]),
    Row("Python mcp 2 on asyncio, legacy", here("mcp"), python("sdk2", "asyncio", "legacy")),
    Row("Python mcp 2 on asyncio, auto", here("mcp"), python("sdk2", "asyncio", "auto"), MODERN),
    Row("Python mcp 2 on Trio, legacy", here("mcp"), python("sdk2", "trio", "legacy")),
    Row("Python mcp 2 on Trio, auto", here("mcp"), python("sdk2", "trio", "auto"), MODERN),
    Row("FastMCP 4, legacy", here("fastmcp"), python("fastmcp4", "legacy")),
    Row("FastMCP 4, default", here("fastmcp"), python("fastmcp4", "auto"), MODERN),
    Row("MCP Inspector CLI, legacy", npm_version(INSPECTOR), inspector("legacy"), RESULTS_ONLY, shows_http=False),
    Row(
        "MCP Inspector CLI, auto",
        npm_version(INSPECTOR),
        inspector("auto"),
        {**RESULTS_ONLY, **MODERN},
        shows_http=False,
    ),
    Row("curl that echoes the session id", lambda _: "", python("curl", "session")),
    Row("curl that does not", lambda _: "", python("curl"), {**NO_SESSION, "close": Why.NOTHING_TO_CLOSE}),
    Row(
        "Python mcp 2 that never echoes the id",
        here("mcp"),
        python("sdk2", "asyncio", "legacy", "forgetful"),
        NO_SESSION,
    ),
)
