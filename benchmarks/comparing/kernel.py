"""What the SDK's kernel takes for a request: it validates, runs the handler and makes the result ready to be written.

No server gets below that which leaves this work to the SDK. Measured inside one process, without HTTP or JSON:

    python kernel.py SECONDS WORKLOAD...

It prints the CPU time of one request for each of these workloads that are requests, in microseconds, as JSON.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import anyio
import trio
from mcp.server.connection import Connection
from mcp.server.lowlevel import Server
from mcp.server.runner import serve_one
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import NoBackChannelError
from mcp.shared.transport_context import TransportContext

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent / "servers"))

from sdk import server

from comparing.plans import ADD, call
from comparing.workloads import CALL, LIST, MODERN_CALL, MODERN_PROGRESS, SESSION_PROGRESS, SYNC, VALUES
from harness import mcp

BATCH = 50
"""Requests between two looks at the clock."""


class NullContext:
    """What a request comes with: nobody is told anything."""

    transport = TransportContext(kind="none", can_send_request=False)
    can_send_request = False
    request_id = 1
    message_metadata = None

    def __init__(self) -> None:
        self.cancel_requested = anyio.Event()

    async def send_raw_request(
        self,
        method: str,
        params: Mapping[str, Any] | None,  # noqa: ARG002 - the names are the SDK's
        opts: CallOptions | None = None,  # noqa: ARG002 - as above
    ) -> dict[str, Any]:
        """Refuse: there is nobody to ask."""
        raise NoBackChannelError(method)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None) -> None:
        """Drop it."""

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Drop it."""


def request(kernel: Server[Any], message: mcp.Json, version: str) -> Callable[[], Awaitable[dict[str, Any]]]:
    """Return what runs a request from its parsed message to its result."""
    method, params = message["method"], message.get("params")
    meta = (params or {}).get("_meta", {})
    known = meta.get(f"{mcp.META}clientInfo"), meta.get(f"{mcp.META}clientCapabilities")

    async def run() -> dict[str, Any]:
        connection = Connection.from_envelope(version, *known)
        return await serve_one(kernel, NullContext(), method, params, connection=connection, lifespan_state={})

    return run


async def cost(run: Callable[[], Awaitable[dict[str, Any]]], seconds: float) -> float:
    """Return the CPU time of one run, in microseconds."""
    for _ in range(BATCH):
        result = await run()
        assert not result.get("isError"), result
    count, started, until = 0, time.process_time(), time.perf_counter() + seconds
    while time.perf_counter() < until:
        for _ in range(BATCH):
            await run()
        count += BATCH
    return (time.process_time() - started) / count * 1e6


async def main(seconds: float, names: Collection[str]) -> None:
    """Measure each of these workloads for so many seconds."""
    lowlevel = server._lowlevel_server  # noqa: SLF001  # there is no public way to it
    add, report = call("add", ADD), call("progress", {"n": VALUES}, progress=True)
    requests = {
        CALL.name: (add, mcp.LEGACY),
        SYNC.name: (call("add_sync", ADD), mcp.LEGACY),
        SESSION_PROGRESS.name: (report, mcp.LEGACY),
        MODERN_CALL.name: (mcp.modern(add), mcp.MODERN),
        MODERN_PROGRESS.name: (mcp.modern(report), mcp.MODERN),
        LIST.name: (mcp.request("tools/list"), mcp.LEGACY),
    }
    gc.collect()
    gc.freeze()  # what the collector takes for all that was imported is not the kernel's
    async with lowlevel.lifespan(lowlevel):
        runs = {name: request(lowlevel, message, version) for name, (message, version) in requests.items()}
        print(json.dumps({name: await cost(run, seconds) for name, run in runs.items() if name in names}))


if __name__ == "__main__":
    trio.run(main, float(sys.argv[1]), sys.argv[2:])
