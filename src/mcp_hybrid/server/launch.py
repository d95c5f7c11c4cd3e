"""What `mcp-hybrid serve` starts: one process that serves, or a master over several.

The socket is bound here, before anything else starts: a port in use is known at once, workers share it with nobody
else, and port 0 can be told by its number. Only a process that serves imports the application.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext, SSLError
from typing import Final

import structlog
import trio

from mcp_hybrid.errors import ConfigurationError
from mcp_hybrid.server.accepting import BACKLOG
from mcp_hybrid.server.stopping import Stopping, terminal_is_gone
from mcp_hybrid.settings import Loaded, Settings
from mcp_hybrid.telemetry.directory import prepare_multiprocess

NOT_RELOADED: Final = "SIGHUP is ignored: one process cannot take its own place; give server.workers 2 or more for that"

log = structlog.get_logger()


def serve(loaded: Loaded) -> int:
    """Serve until SIGTERM or SIGINT; the exit code to leave with is returned.

    Raises ConfigurationError, before anything is served, for a target, a certificate or an address that cannot be used.
    """
    check_certificate(loaded.settings)
    if loaded.settings.server.workers == 1:
        return _serve_here(loaded.settings)
    from mcp_hybrid.server.master import Master  # noqa: PLC0415 - either imports what the other does without

    with listening(loaded.settings) as listeners, prepare_multiprocess(os.environ):
        return trio.run(Master(loaded, listeners).run)


def _serve_here(settings: Settings) -> int:
    from mcp_hybrid.server.running import guarded_application, run, runtime_of  # noqa: PLC0415 - as above

    app = guarded_application(settings)
    with listening(settings) as listeners:
        address = url(settings, listeners)

        async def started() -> None:
            announce(settings, address, runtime_of(app))

        async def main() -> int:
            stopping = Stopping(settings.server.drain_timeout)
            stopping.on_signals()
            trio.lowlevel.spawn_system_task(_hear_hang_up, stopping)
            return await run(app, listeners, stopping, started=started)

        return trio.run(main)


async def _hear_hang_up(stopping: Stopping) -> None:
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            if terminal_is_gone():
                stopping.stop("the terminal is gone")
            else:
                log.warning(NOT_RELOADED)


@contextmanager
def listening(settings: Settings) -> Iterator[Sequence[socket.socket]]:
    """Listen where the settings say: for the endpoint, and for the operator's pages if they have a port of their own.

    Raises:
        ConfigurationError: Not possible.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(_bound(host, port)) for host, port in addresses(settings)]


def addresses(settings: Settings) -> list[tuple[str, int]]:
    """Return the addresses that `listening` binds."""
    operator = [(settings.operator.host, settings.operator.port)] if settings.operator.port else []
    return [(settings.server.host, settings.server.port), *operator]


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    address = (host.strip("[]"), port)
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}") from None
        yield listener


def check_certificate(settings: Settings) -> None:
    """Raise ConfigurationError if the certificate and its key cannot be used."""
    files = {"server.certfile": settings.server.certfile, "server.keyfile": settings.server.keyfile}
    missing = [name for name, path in files.items() if path is None]
    if len(missing) == 1:
        raise ConfigurationError(f"{missing[0]} is not set: TLS needs both a certificate and its key")
    for name, path in files.items():
        try:
            if path is not None:
                Path(path).open("rb").close()
        except OSError as error:
            raise ConfigurationError(f"{name}: {path} cannot be read: {error.strerror}") from None
    if settings.server.certfile is not None:
        try:
            SSLContext(PROTOCOL_TLS_SERVER).load_cert_chain(
                settings.server.certfile, settings.server.keyfile, _no_password
            )
        except (SSLError, ValueError) as error:
            why = getattr(error, "reason", None) or str(error)
            raise ConfigurationError(f"server.certfile and server.keyfile cannot be used together: {why}") from None


def _no_password() -> str:
    raise ValueError("the key is encrypted, and there is nobody to ask for its password")


def url(settings: Settings, listeners: Sequence[socket.socket]) -> str:
    """Return where the endpoint is."""
    host, port = listeners[0].getsockname()[:2]
    scheme = "https" if settings.server.certfile is not None else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{settings.path}"


def announce(settings: Settings, address: str, runtime: Sequence[str] = ()) -> None:
    """Say in the log that requests are served, where, and what runs the program and why."""
    chosen = dict(zip(("runtime", "runtime_reason"), runtime, strict=False))
    workers = {"workers": settings.server.workers} if settings.server.workers > 1 else {}
    log.info(
        "serving", url=address, mode=settings.mode.value, target=settings.target or "built-in demo", **chosen, **workers
    )
