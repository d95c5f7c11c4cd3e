"""One of a master's workers: `python -m mcp_hybrid.server.child`, with descriptors it inherits as arguments.

The first is a socket to the master, the others listen. By the first it is told how to start (one line of JSON), says
whether it did (one line), and from then on is told to retire (a line) or to stop: the end of what can be read, which
also comes when the master has died, so that no worker outlives it.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import trio
from pydantic import SecretStr

from mcp_hybrid.app import HybridApp
from mcp_hybrid.errors import ConfigurationError
from mcp_hybrid.server.running import guarded_application, run
from mcp_hybrid.server.stopping import Stopping
from mcp_hybrid.server.worker_process import READY, RETIRE
from mcp_hybrid.settings import Settings, load
from mcp_hybrid.telemetry.logs import configure_logging

UNUSABLE: Final = 2
"""The exit code of a worker whose settings or target cannot be used."""


def main(*numbers: str) -> int:
    """Serve until told to stop; the exit code to leave with is returned."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal's goes to everybody; what it means the master decides
    control, *listeners = (socket.socket(fileno=int(number)) for number in numbers)
    for inherited in (control, *listeners):  # but not by what tools start
        inherited.set_inheritable(False)
    with control, control.makefile("r", encoding="utf-8") as lines:
        start = lines.readline()
        if not start:  # the master is gone already
            return 0
        try:
            settings = _settings(json.loads(start))
            configure_logging(settings.log.level, settings.log.format)
            app = guarded_application(settings)
            return trio.run(_serve, app, listeners, control)
        except ConfigurationError as error:
            with suppress(OSError):
                control.sendall(f"{error}\n".encode())
            return UNUSABLE


def _settings(start: Mapping[str, Any]) -> Settings:
    """Return the settings as they are now, wherever they come from."""
    config = None if start["config"] is None else Path(start["config"])
    settings = load(start["overrides"], config=config).settings
    if start["key"] is None:
        return settings
    # Made by the master where there was none. It stays good beside those that were configured since.
    keys = [*settings.sessions.keys, SecretStr(start["key"])]
    return settings.model_copy(update={"sessions": settings.sessions.model_copy(update={"keys": keys})})


async def _serve(app: HybridApp, listeners: Sequence[socket.socket], control: socket.socket) -> int:
    stopping = Stopping(app.settings.server.drain_timeout)
    stopping.on_signals()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(control))
    trio.lowlevel.spawn_system_task(_obey, stream, stopping)

    async def started() -> None:
        with suppress(trio.BrokenResourceError):  # told to stop meanwhile: requests that came first are still finished
            await stream.send_all(READY)

    return await run(app, listeners, stopping, linger=True, started=started)


async def _obey(control: trio.SocketStream, stopping: Stopping) -> None:
    said = b""
    while piece := await _receive(control):
        said += piece
        if said == RETIRE:
            stopping.retire()
    stopping.stop("the master says so, or is gone")


async def _receive(control: trio.SocketStream) -> bytes:
    try:
        return bytes(await control.receive_some())
    except trio.BrokenResourceError:
        return b""


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
