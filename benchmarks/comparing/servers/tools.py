"""The tools that every server of the benchmark written in Python has, and the SDK's server with them.

Run by our server, by the SDK and, for the tools, by FastMCP: each in an environment of its own, so nothing is imported
here but the standard library and, for `server`, the SDK.
"""

# No `from __future__ import annotations`: the frameworks read the annotations of what is defined inside a function.

import os
from collections.abc import Callable
from typing import Any

Report = Callable[[int, int], Any]

MANY = int(os.environ.get("BENCH_TOOLS", "0"))
"""Further tools, for lists that are long."""

connections: dict[int, Any] = {}
"""The SDK's connections that want to hear of broadcasts, which outlive the requests they were seen in."""


async def add(a: int, b: int) -> int:
    """Add two whole numbers."""
    return a + b


def add_sync(a: int, b: int) -> int:
    """Add two whole numbers, in a function that is not async."""
    return a + b


async def report(ctx: Any, n: int) -> str:
    """Report n values of progress, without a pause."""
    for value in range(1, n + 1):
        await ctx.report_progress(value, n)
    return "done"


async def remember(ctx: Any) -> int:
    """Have the caller's session told of broadcasts."""
    connection = ctx.session._connection  # noqa: SLF001  # the SDK has no public way from the one to the other
    connections[id(connection)] = connection
    return len(connections)


async def tell_all(number: int) -> str:
    """Tell every session that was remembered, on its standalone stream."""
    for connection in list(connections.values()):
        await connection.send_resource_updated(f"bench://round/{number}/")
    return "done"


def one_of_many(number: int) -> Callable[..., Any]:
    """Make one of the tools that are only listed."""

    async def tool(count: int, text: str = "", *, exact: bool = False) -> str:
        return f"{number} {count} {text} {exact}"

    tool.__name__ = f"tool_{number}"
    tool.__doc__ = f"Do what tool {number} does, which is nothing that anybody needs."
    return tool


def register(server: Any, context: type) -> None:
    """Give a server its tools; `context` is its framework's class for what tools are handed."""

    async def progress(ctx: Any, n: int) -> str:
        return await report(ctx, n)

    async def join(ctx: Any) -> int:
        return await remember(ctx)

    for function in (progress, join):
        function.__annotations__["ctx"] = context
    for tool in (add, add_sync, progress, join, tell_all, *map(one_of_many, range(MANY))):
        server.tool()(tool)
