"""The SDK's server object: `mcp-hybrid serve` serves it, `on_sdk.py` has the SDK itself serve it."""

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from tools import register

server = MCPServer("benchmark", version="1", log_level="WARNING")
register(server, Context)
