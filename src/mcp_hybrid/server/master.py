"""The master over several workers: it replaces those that die, reloads on SIGHUP, and ends them all in order.

It serves nothing itself and imports neither the target nor the protocol. Each worker (`child`) inherits the listening
socket, so that connections wait while workers change, and reads the settings by itself, so that a reload sees new ones.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from typing import Final

import structlog
import trio

from mcp_hybrid.errors import ConfigurationError
from mcp_hybrid.routing.modes import Mode
from mcp_hybrid.server.launch import addresses, announce, check_certificate, url
from mcp_hybrid.server.stopping import FORCE_AFTER, FORCED, terminal_is_gone
from mcp_hybrid.server.worker_process import Worker, WorkerFailedError, WorkerRefusedError
from mcp_hybrid.sessions.seal import fresh_key
from mcp_hybrid.settings import Loaded, Settings, load
from mcp_hybrid.telemetry.directory import forget_worker
from mcp_hybrid.telemetry.logs import configure_logging

UNSHARED: Final = (
    "several workers and no shared backplane: sessions are served by all of them, but the end of a session, answers to "
    "questions, cancellations, resumed streams, the GET stream and session state stay with the worker they are on; "
    "set backplane to a Redis to share them"
)
"""What is said at start where it matters: what does not cross workers, and what to do."""
STABLE: Final = 10.0
"""Seconds after which a worker's death is no longer taken for a failed start."""
FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 30.0
"""Seconds before another try, doubled from the first to the longest while workers die soon after their start."""
TRIES: Final = 5
"""Failed starts in a row after which the master gives up, if it has no worker at all."""

_SPARE: Final = 2.0
"""Seconds beyond those after which a worker ends itself by force, before it is killed."""
_LOOK: Final = 0.02
"""Seconds between two looks at whether all workers have ended."""

log = structlog.get_logger()


class Master:
    """Keeps workers on a listening socket until it is told to stop."""

    def __init__(self, loaded: Loaded, listeners: Sequence[socket.socket]) -> None:
        self._loaded = loaded
        self._settings = loaded.settings
        self._listeners = listeners
        self._key: str | None = None
        self._all: set[Worker] = set()
        self._crew: set[Worker] = set()
        """Those that serve and are not told to end."""
        self._generation = 0
        self._failures = 0
        self._stopping = False
        self._changing = True
        """Whether workers are being started for all: a SIGHUP that comes meanwhile has to wait."""
        self._reload_wanted = False
        self._exit_code = 0
        self._error: ConfigurationError | None = None

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT; the exit code to leave with is returned.

        Raises:
            ConfigurationError: No worker could use its settings or its target, at the start.
        """
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._start)
                async for number in signals:
                    self._obey(signal.Signals(number))
        if self._error is not None:
            raise self._error
        return self._exit_code

    def _obey(self, number: signal.Signals) -> None:
        if self._stopping:
            if number is not signal.SIGHUP:
                self._end_at_once(number)
        elif number is not signal.SIGHUP or terminal_is_gone():
            self._stopping = True
            log.info("stopping", why=number.name, drain_timeout=self._settings.server.drain_timeout)
            self._nursery.start_soon(self._stop)
        else:
            self._reload_wanted = True
            self._reload_if_wanted()

    # Starting

    async def _start(self) -> None:
        self._share_key(self._settings)
        while not self._crew and not self._stopping:
            try:
                self._crew.update(await self._hire(self._settings.server.workers))
            except WorkerRefusedError as error:
                self._error = ConfigurationError(str(error))
                await self._stop()
            except WorkerFailedError as error:
                await self._after_failure(error)
            else:
                self._warn()
                announce(self._settings, url(self._settings, self._listeners))
        self._changing = False
        self._reload_if_wanted()

    async def _hire(self, number: int) -> list[Worker]:
        """Start so many workers and wait until all serve; if one fails, the others are told to end.

        Raises:
            WorkerFailedError: One did not come up.
        """
        start = {"overrides": dict(self._loaded.overrides), "key": self._key}
        start["config"] = None if self._loaded.config is None else str(self._loaded.config)
        hired: list[Worker] = []
        try:
            for _ in range(number):
                self._check_not_stopping()
                worker = await Worker.start(self._listeners, start)
                hired.append(worker)
                self._all.add(worker)
                self._nursery.start_soon(self._see_out, worker)
            self._check_not_stopping()
            for worker in hired:
                await worker.until_ready()
        except WorkerFailedError:
            for worker in hired:  # the first of them may have got a request already
                await worker.stop()
            raise
        return hired

    def _check_not_stopping(self) -> None:
        if self._stopping:
            raise WorkerFailedError("the server is stopping")

    async def _see_out(self, worker: Worker) -> None:
        """See a worker through to its end, and put another in its place if nobody told it to end."""
        code = await worker.process.wait()
        await worker.control.aclose()
        self._all.discard(worker)
        forget_worker(worker.process.pid)
        if worker in self._crew:
            self._crew.discard(worker)
            if not self._stopping:
                log.error("a worker died; another takes its place", pid=worker.process.pid, exit_code=code)
                await self._replace(worker)
        elif worker.ready and code != 0:
            log.error("a worker did not end in order", pid=worker.process.pid, exit_code=code)
            if self._stopping:
                self._exit_code = FORCED

    async def _replace(self, dead: Worker) -> None:
        generation = self._generation
        self._failures = 0 if trio.current_time() - dead.since >= STABLE else self._failures + 1
        await self._wait_after_failures()
        while generation == self._generation and not self._stopping:
            try:
                hired = await self._hire(1)
            except WorkerFailedError as error:
                await self._after_failure(error)
                continue
            if generation == self._generation:
                self._crew.update(hired)
            else:  # a reload has filled all places meanwhile
                await hired[0].retire()
            return

    async def _after_failure(self, error: WorkerFailedError) -> None:
        if self._stopping:
            return
        self._failures += 1
        log.error("a worker could not start", why=str(error), in_a_row=self._failures)
        if not self._crew and self._failures >= TRIES:
            log.error("giving up: no worker comes up")
            self._exit_code = FORCED
            await self._stop()
        else:
            await self._wait_after_failures()

    async def _wait_after_failures(self) -> None:
        if self._failures:
            await trio.sleep(min(FIRST_DELAY * 2 ** (self._failures - 1), LONGEST_DELAY))

    # Reloading

    async def _reload(self) -> None:
        """Start workers with what the settings and the target are now; those there are go once these serve."""
        log.info("reloading")
        try:
            fresh = self._read_again()
            self._share_key(fresh)
            hired = await self._hire(fresh.server.workers)
        except (ConfigurationError, WorkerFailedError) as error:
            if not self._stopping:
                log.error("not reloaded; the workers there are stay", why=str(error))  # noqa: TRY400 - the operator's
        else:
            await self._go_over_to(fresh, hired)
        self._changing = False
        self._reload_if_wanted()

    def _read_again(self) -> Settings:
        fresh = load(self._loaded.overrides, config=self._loaded.config).settings
        if addresses(fresh) != addresses(self._settings):
            raise ConfigurationError("addresses and ports cannot change by a reload; restart for that")
        check_certificate(fresh)
        return fresh

    def _reload_if_wanted(self) -> None:
        if self._reload_wanted and not self._changing and not self._stopping:
            self._reload_wanted, self._changing = False, True
            self._nursery.start_soon(self._reload)

    async def _go_over_to(self, fresh: Settings, hired: list[Worker]) -> None:
        configure_logging(fresh.log.level, fresh.log.format)
        self._settings, self._failures = fresh, 0
        self._generation += 1
        old = list(self._crew)
        self._crew = set(hired)
        for worker in old:
            await worker.retire()
        log.info("reloaded", workers=len(hired))

    def _share_key(self, settings: Settings) -> None:
        """Make one key for all workers, if there is to be one and none is configured. It is kept over reloads."""
        if self._key is None and not settings.sessions.keys and settings.mode is not Mode.STATELESS:
            self._key = fresh_key()

    def _warn(self) -> None:
        if self._key is not None:
            log.warning(
                "no sessions.keys configured: sessions end with this process",
                hint="set sessions.keys; `mcp-hybrid session-key` prints a key",
            )
        if self._settings.backplane == "memory" and self._settings.mode is not Mode.STATELESS:
            log.warning(UNSHARED, workers=self._settings.server.workers)

    # Stopping

    async def _stop(self) -> None:
        """Have all workers drain and end; kill those that do not."""
        self._stopping = True
        for listener in self._listeners:
            listener.close()
        self._crew.clear()
        for worker in list(self._all):
            await worker.stop()
        with trio.move_on_after(self._settings.server.drain_timeout + FORCE_AFTER + _SPARE):
            await self._all_ended()
        for worker in self._all:
            log.error("a worker had to be killed: it did not end by itself", pid=worker.process.pid)
            worker.process.kill()
        await self._all_ended()
        if self._error is None:
            log.info("stopped")
        self._nursery.cancel_scope.cancel()

    async def _all_ended(self) -> None:
        while self._all:  # noqa: ASYNC110 - once in a process's life
            await trio.sleep(_LOOK)

    def _end_at_once(self, number: signal.Signals) -> None:
        """Die of a second signal, and take everybody along."""
        for worker in self._all:
            worker.process.kill()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
