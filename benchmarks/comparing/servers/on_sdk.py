"""The SDK's own server for Streamable HTTP.

python on_sdk.py PORT hypercorn|uvicorn stateless|stateful json|sse
"""

import sys

from sdk import server
from stacks import STACKS

port, stack, state, form = sys.argv[1:]
app = server.streamable_http_app(json_response=form == "json", stateless_http=state == "stateless")
STACKS[stack](app, int(port))
