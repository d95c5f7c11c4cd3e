"""`app`, built from the environment, for servers that are started by name: `hypercorn -k trio mcp_hybrid.asgi:app`."""

from __future__ import annotations

import sys
from typing import Final

import structlog

from mcp_hybrid.app import HybridApp
from mcp_hybrid.errors import ConfigurationError
from mcp_hybrid.server.asyncio_worker import drain_asyncio_workers
from mcp_hybrid.server.running import application
from mcp_hybrid.server.worker import harden
from mcp_hybrid.settings import load
from mcp_hybrid.telemetry.logs import configure_logging, flush_logs, take_over_process

UNJUDGED: Final = "no authentication configured: whoever reaches the address that this app is served on is let in"
"""An ASGI application does not know where it is served, so it cannot refuse as `mcp-hybrid serve` does."""

log = structlog.get_logger("mcp_hybrid")


def _build() -> HybridApp:
    try:
        settings = load().settings
        configure_logging(settings.log.level, settings.log.format)
        take_over_process()
        built = application(settings)
    except ConfigurationError as error:
        flush_logs()
        sys.stderr.write(f"mcp-hybrid: {error}\n")
        raise SystemExit(2) from None
    if not (built.authenticated or settings.auth.allow_anonymous):
        log.warning(UNJUDGED, hint="set auth.api_keys or auth.issuer; auth.allow_anonymous = true silences this")
    return built


async def _drain(graceful_timeout: float) -> None:
    """Drain in the time that Hypercorn gives, which is its own setting here: a part of it is for the last answers."""
    await app.drain(min(app.settings.server.drain_timeout, graceful_timeout * 0.75))


app = _build()
harden(_drain)
drain_asyncio_workers(_drain)
