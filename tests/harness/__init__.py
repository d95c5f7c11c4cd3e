"""What the tests drive the server with: an in-process ASGI client, MCP messages, real processes, example servers."""
