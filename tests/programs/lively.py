"""A server whose event streams show a sign of life three times a second, for tests of what cuts silent ones."""

from __future__ import annotations

from mcp.server import MCPServer

from mcp_hybrid.exchange import sse

sse.KEEP_ALIVE_INTERVAL = 0.3  # type: ignore[misc]  # Final, but for this

server = MCPServer("lively")
