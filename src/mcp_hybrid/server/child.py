"""One of a master's workers: `python -m mcp_hybrid.server.child`, with descriptors it inherits as arguments.

The first is a socket to the master, the others listen. By the first it is told how to start (one line of JSON), says
whether it did (one line), and from then on is told to retire or to stop (a line each). The end of what can be read
means that the master has died: then it drains and ends, so that no worker outlives its master (see `parent`).
"""

from __future__ import annotations

import faulthandler
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
from mcp_hybrid.server.parent import ParentWatch
from mcp_hybrid.server.running import guarded_application, run, runtime_of
from mcp_hybrid.server.stopping import Stopping
from mcp_hybrid.server.worker_process import READY, RETIRE, START_TIMEOUT, STOP
from mcp_hybrid.settings import Settings, load
from mcp_hybrid.telemetry.logs import configure_logging, take_over_process

UNUSABLE: Final = 2
"""The exit code of a worker whose settings or target cannot be used."""
REPORT_AFTER: Final = START_TIMEOUT - 5
"""Seconds after which a worker that is not ready writes to standard error what it is doing, before it is killed."""


def main(*numbers: str) -> int:
    """Serve until told to stop; the exit code to leave with is returned."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal's goes to everybody; what it means the master decides
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until it serves, ctrl-C needs no traceback
    control, *listeners = (socket.socket(fileno=int(number)) for number in numbers)
    for inherited in (control, *listeners):  # but not by what tools start
        inherited.set_inheritable(False)
    with control, control.makefile("r", encoding="utf-8") as lines:
        start = lines.readline()
        if not start:  # the master is gone already
            return 0
        with suppress(Exception):  # standard error may be closed
            faulthandler.dump_traceback_later(REPORT_AFTER)
        try:
            told = json.loads(start)
            watch = ParentWatch(control, told["master"], listeners)
            settings = _settings(told)
            configure_logging(settings.log.level, settings.log.format)
            take_over_process()
            app = guarded_application(settings)
            return trio.run(_serve, app, listeners, control, watch)
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


async def _serve(app: HybridApp, listeners: Sequence[socket.socket], control: socket.socket, watch: ParentWatch) -> int:
    stopping = Stopping(app.settings.server.drain_timeout)
    stopping.on_signals()
    watch.serving(stopping)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(control))
    trio.lowlevel.spawn_system_task(_obey, stream, stopping)
    trio.lowlevel.spawn_system_task(_stop_listening, stopping, watch)

    async def started() -> None:
        faulthandler.cancel_dump_traceback_later()
        with suppress(trio.BrokenResourceError):  # told to stop meanwhile: requests that came first are still finished
            await stream.send_all(READY + json.dumps([*runtime_of(app)]).encode() + b"\n")

    return await run(app, listeners, stopping, linger=True, started=started)


async def _stop_listening(stopping: Stopping, watch: ParentWatch) -> None:
    await stopping.told.wait()
    watch.stop_listening()


async def _obey(control: trio.SocketStream, stopping: Stopping) -> None:
    said = b""
    while piece := await _receive(control):
        *orders, said = (said + piece).split(b"\n")
        for order in orders:
            if order + b"\n" == RETIRE:
                stopping.retire()
            elif order + b"\n" == STOP:
                stopping.stop("the master says so")
    stopping.stop("the master is gone")


async def _receive(control: trio.SocketStream) -> bytes:
    try:
        return bytes(await control.receive_some())
    except trio.BrokenResourceError:
        return b""


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
