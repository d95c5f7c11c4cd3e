"""The floor: an application that reads a request's body and answers with one that is always the same.

python hello.py PORT hypercorn|uvicorn|hardened

`hardened` is Hypercorn with the connection handler of `mcp-hybrid serve`.
"""

import sys
from typing import Any

from stacks import STACKS, on_hypercorn

BODY = b'{"jsonrpc":"2.0","id":1,"result":{"content":[{"text":"3","type":"text"}],"isError":false}}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for stage in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{stage}.complete"})
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY, "more_body": False})


port, stack = sys.argv[1:]
if stack == "hardened":
    from mcp_hybrid.server.worker import harden

    harden()
    on_hypercorn(app, int(port))
else:
    STACKS[stack](app, int(port))
