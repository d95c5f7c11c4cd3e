"""FastMCP on uvicorn, with its defaults.

python on_fastmcp.py PORT stateless|stateful
"""

import sys

from fastmcp import Context, FastMCP
from stacks import on_uvicorn
from tools import register

port, state = sys.argv[1:]
server: FastMCP = FastMCP("benchmark", version="1")
register(server, Context)
on_uvicorn(server.http_app(path="/mcp", stateless_http=state == "stateless"), int(port))
